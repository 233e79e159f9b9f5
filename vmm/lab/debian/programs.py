"""Programs of Debian packages for a guest, with the libraries that they load and nothing else.

    named packages: all but documentation and the like --+
    what they depend on: the libraries that are needed --+--> .cpio, to follow the first initramfs

Each megabyte takes a guest in an emulated host some 50 ms.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cpio import CpioWriter
from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.debian import apt, rootfs
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITE = "trixie"
LIBRARIES = "usr/lib/aarch64-linux-gnu"
"""Debian's multiarch directory, where ld.so looks for libraries."""

_KEPT = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/lib", "usr/libexec", "usr/share/misc")
"""The directories of a named package that are kept: what programs need to run."""

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed(data: bytes) -> list[str]:
    """Return the names of the libraries that the ELF file *data* loads; none if it is not ELF.

    They are the DT_NEEDED entries (System V generic ABI, chapter 5), 64-bit little-endian.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, table + at * size) for at in range(count)]
    dynamic: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length in segments:
        if kind == _PT_DYNAMIC:
            dynamic += struct.iter_unpack("<QQ", data[offset : offset + length])
    if (_DT_NULL, 0) in dynamic:
        dynamic = dynamic[: dynamic.index((_DT_NULL, 0))]
    strings = dict(dynamic).get(_DT_STRTAB)
    if strings is None:
        return []
    for kind, _, offset, address, _, length in segments:
        if kind == _PT_LOAD and address <= strings < address + length:
            strings += offset - address
            break
    names = [strings + value for tag, value in dynamic if tag == _DT_NEEDED]
    return [data[at : data.index(b"\0", at)].decode() for at in names]


def archive(packages: Sequence[str]) -> Path:
    """Return a cpio archive with *packages* of Debian trixie, arm64, from the cache.

    Of what they depend on, only the libraries that they load are included. What they run or import
    must be named, too (python3.13-minimal and libpython3.13-minimal, for a Python).
    Raises HostError: no such package, no network, disk full.
    """
    debs = apt.fetch(packages, suite=SUITE, arch="arm64", closure=True)
    key = cache.digest([deb.name for deb in debs], sorted(packages), Path(__file__).read_text())

    def build(temporary: Path) -> None:
        with (
            step(f"packing {', '.join(packages)} for guests"),
            cache.scratch(temporary, "all") as everything,
            cache.scratch(temporary, "tree") as tree,
        ):
            named = [deb for deb in debs if deb.name.partition("_")[0] in packages]
            apt.unpack(debs, everything)
            apt.unpack(named, tree)
            _strip(tree)
            _add_libraries(tree, everything)
            _link(tree)
            if list(tree.glob("usr/lib/python3*")):
                rootfs.compile_python(tree / "usr/lib")
            with temporary.open("wb") as file:
                writer = CpioWriter(file)
                writer.tree(tree)
                writer.close()

    return cache.entry(cache.root() / "guests" / f"programs-{key}.cpio", build)


def _strip(tree: Path) -> None:
    kept = [tree / name for name in _KEPT]
    for path in sorted(tree.rglob("*"), reverse=True):  # what is in a directory comes first
        inside = any(path.is_relative_to(each) or each.is_relative_to(path) for each in kept)
        if not inside and (path.is_symlink() or not path.is_dir()):
            path.unlink()
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _add_libraries(tree: Path, everything: Path) -> None:
    """Copy to *tree*, from *everything*, the libraries that the programs in *tree* load."""
    waiting = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    (tree / LIBRARIES).mkdir(parents=True, exist_ok=True)
    there = {path.name for path in tree.rglob("*.so*")}
    while waiting:
        for name in needed(waiting.pop().read_bytes()):
            if name in there:
                continue
            there.add(name)
            found = sorted(everything.glob(f"{LIBRARIES}/{name}"))
            found += sorted(everything.glob(f"{LIBRARIES}/*/{name}"))
            if not found:
                raise HostError(f"no package has {name}, which a program of them loads")
            target = tree / LIBRARIES / name
            target.write_bytes(found[0].read_bytes())
            target.chmod(0o755)
            waiting.append(target)


def _link(tree: Path) -> None:
    """Link the older places where programs look: ld.so in lib, tools in sbin."""
    (tree / "usr/sbin").mkdir(exist_ok=True)
    for name in ("lib", "sbin"):
        if not (tree / name).exists():
            (tree / name).symlink_to(f"usr/{name}")
    loader = tree / LIBRARIES / "ld-linux-aarch64.so.1"
    if loader.exists():
        (tree / "usr/lib" / loader.name).symlink_to(f"aarch64-linux-gnu/{loader.name}")
