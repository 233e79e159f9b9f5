"""Cross-build ``vmm._native`` for the lab's arm64 hosts.

The compiler is Debian's gcc-aarch64-linux-gnu; the arm64 headers and static libraries come from
Debian's packages, unpacked into the cache. What to compile and how is cdefs/native.py's to say.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.debian import apt
from vmm.lab.progress import step

if TYPE_CHECKING:
    from pathlib import Path

COMPILER = "aarch64-linux-gnu-gcc"
_SUITE = "trixie"
_PACKAGES = ("libfdt-dev", "libpython3.13-dev", "linux-libc-dev")
_PYTHON = "python3.13"


def sysroot() -> Path:
    """Return a directory with the arm64 headers and libraries that vmm._native is built from."""
    debs = apt.fetch(_PACKAGES, suite=_SUITE, arch="arm64")
    key = cache.digest([deb.name for deb in debs])

    def build(temporary: Path) -> None:
        with step("unpacking arm64 headers"):
            apt.unpack(debs, temporary)

    return cache.entry(cache.root() / "sysroots" / f"arm64-{key}", build)


def flags() -> tuple[list[str], list[str]]:
    """Return the compiler's and the linker's flags for building against `sysroot`."""
    root = sysroot() / "usr"
    triplet = "aarch64-linux-gnu"
    includes = [root / "include" / _PYTHON, root / "include" / triplet, root / "include"]
    # -idirafter: the cross compiler's own libc comes first, whose headers fit its libraries.
    compiling = [f"-idirafter{path}" for path in includes]
    return compiling, [f"-L{root / 'lib' / triplet}"]


def _inputs(tree: Path) -> list[Path]:
    paths = [path for path in (tree / "cdefs").iterdir() if path.suffix in {".c", ".h", ".py"}]
    return sorted(path for path in paths if path.name != "_native.c")


def extension(tree: Path) -> Path:
    """Return ``_native.abi3.so`` for arm64, built from the source *tree*, from the cache."""
    if not (tree / "cdefs").is_dir():
        raise HostError(
            f"{tree} is no source tree of pyvmm: the lab can't build its arm64 extension there",
            "run pyvmm from a checkout (`pip install -e .`)",
        )
    content = hashlib.sha256()
    inputs = _inputs(tree)
    for path in inputs:
        content.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    where = cache.root() / "native" / content.hexdigest()[:16]

    def build(temporary: Path) -> None:
        if shutil.which(COMPILER) is None:
            raise command.missing(COMPILER)
        compiling, linking = flags()
        with step("building vmm._native for arm64"):
            cdefs = temporary / "cdefs"
            cdefs.mkdir(parents=True)
            for path in inputs:
                shutil.copyfile(path, cdefs / path.name)
            command.run(
                [
                    sys.executable,
                    "cdefs/native.py",
                    "_native.abi3.so",
                    COMPILER,
                    *compiling,
                    *linking,
                ],
                cwd=temporary,
            )

    return cache.entry(where, build) / "_native.abi3.so"
