"""``vmm._native`` for the lab's arm64 hosts, wherever this pyvmm comes from.

    a wheel of scripts/wheels    has it, compressed: `PREBUILT`
    a wheel of pip's own making  has its sources: `CARRIED`, cross-compiled here when first needed
    a checkout                   has its sources in cdefs/: the same
    an installation on arm64     has it: the extension that it runs itself

The cross compiler is Debian's gcc-aarch64-linux-gnu. The arm64 headers and static libraries come
from Debian's packages, unpacked into the cache. What to compile and how is in cdefs/native.py.
"""

from __future__ import annotations

import hashlib
import lzma
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.debian import apt
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(__file__).parents[2]
"""The directory of vmm."""
PREBUILT = PACKAGE / "lab/arm64_native.so.xz"
"""Compressed, so that tools that look at a wheel's ELF files see those of its own machine only."""
CARRIED = PACKAGE / "lab/cdefs"
"""What the build back end (cdefs/backend.py) puts into a wheel: a checkout's cdefs/."""
CHECKOUT = PACKAGE.parent / "cdefs"

COMPILER = "aarch64-linux-gnu-gcc"
_NAME = "_native.abi3.so"
_SUITE = "trixie"
_PACKAGES = ("libfdt-dev", "libpython3.13-dev", "linux-libc-dev")
_PYTHON = "python3.13"
_KEPT = 8
"""Extensions kept in the cache: what is being worked on changes often."""


def extension() -> Path:
    """Return the file of the extension; it may be in the cache, and may be built first.

    Raises `HostError`: there is no cross compiler, or a package cannot be had.
    """
    if PREBUILT.exists():
        return _unpacked(PREBUILT.read_bytes())
    if platform.machine() == "aarch64" and not (CHECKOUT / "native.py").exists():
        return PACKAGE / _NAME
    for sources in (CARRIED, CHECKOUT):
        if (sources / "native.py").exists():
            return _built(sources)
    raise HostError(
        f"{PACKAGE} has no extension for arm64, nor what builds it",
        "install pyvmm anew: pip install --force-reinstall pyvmm-arm64",
    )


def _unpacked(data: bytes) -> Path:
    def build(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / _NAME).write_bytes(lzma.decompress(data))

    return _entry(hashlib.sha256(data).hexdigest(), build)


def _built(sources: Path) -> Path:
    inputs = [path for path in sorted(sources.iterdir()) if _is_input(path)]
    content = hashlib.sha256()
    for path in inputs:
        content.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")

    def build(temporary: Path) -> None:
        if shutil.which(COMPILER) is None:
            raise command.missing(COMPILER)
        flags = _flags(_sysroot())
        with step("building vmm._native for arm64"):
            cdefs = temporary / "cdefs"
            cdefs.mkdir(parents=True)
            for path in inputs:
                shutil.copyfile(path, cdefs / path.name)
            recipe = [sys.executable, "cdefs/native.py", _NAME]
            command.run([*recipe, COMPILER, *flags], cwd=temporary)

    return _entry(content.hexdigest(), build)


def _is_input(path: Path) -> bool:
    """Return whether the extension is built from *path*, a file of cdefs/."""
    if path.suffix == ".py":
        return path.name == "native.py"
    return path.suffix in {".c", ".h"} and path.name != "_native.c"


def _entry(key: str, build: Callable[[Path], None]) -> Path:
    """Return the extension in the cache's directory of *key*, which *build* fills."""
    directory = cache.root() / "native"

    def build_and_prune(temporary: Path) -> None:
        build(temporary)
        cache.prune(directory, "*", _KEPT)

    return cache.entry(directory / key[:16], build_and_prune) / _NAME


def _sysroot() -> Path:
    """Return a directory with the arm64 headers and libraries to build with, from the cache."""
    debs = apt.fetch(_PACKAGES, suite=_SUITE, arch="arm64")
    key = cache.digest([deb.name for deb in debs])

    def build(temporary: Path) -> None:
        with step("unpacking arm64 headers"):
            apt.unpack(debs, temporary)

    return cache.entry(cache.root() / "sysroots" / f"arm64-{key}", build)


def _flags(sysroot: Path) -> list[str]:
    """Return the flags of compiler and linker for building against *sysroot*."""
    root = sysroot / "usr"
    triplet = "aarch64-linux-gnu"
    includes = [root / "include" / _PYTHON, root / "include" / triplet, root / "include"]
    # -idirafter: the cross compiler's own libc comes first, whose headers fit its libraries.
    return [*(f"-idirafter{path}" for path in includes), f"-L{root / 'lib' / triplet}"]
