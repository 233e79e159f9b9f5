"""Find the files that a disk image consists of: those that qemu-storage-daemon has to reach.

    image --backing file--> image --backing file--> ...    qcow2, VMDK
      |--data file                                         qcow2
      '--extents                                           VMDK whose descriptor is a text file

The names are those that QEMU makes: relative to the directory of the file that has them.
"""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.errors import UserError
from vmm.virtio.block.image_format import MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.config.disk import DiskConfig

MOST: Final = 256
"""Files of an image."""

HEADER: Final = struct.Struct(">4sIQII")
"""qcow2: magic, version, offset and length of the backing file's name, cluster bits."""
HEADER_V2: Final = 72
"""Bytes."""
LENGTH_AT: Final = 100
"""Offset of the header's length, from version 3 on."""
EXTENSION: Final = struct.Struct(">II")
"""Type, length; the data follows, padded to 8 bytes."""
BACKING_FORMAT: Final = 0xE2792ACA
DATA_FILE: Final = 0x44415441
CLUSTER_BITS: Final = range(9, 22)
"""From QEMU's docs/interop/qcow2."""

VMDK_HEADER: Final = struct.Struct("<4sIIQQQQ")
"""Magic, version, flags, capacity, grain size, descriptor's offset and length in sectors."""
DESCRIPTOR: Final = b"# Disk DescriptorFile"
LONGEST_DESCRIPTOR: Final = 1 << 20
EXTENT: Final = re.compile(rb'^(?:RW|RDONLY) +\d+ +\w+ +"([^"\n]+)"', re.MULTILINE)
PARENT: Final = re.compile(rb'^parentFileNameHint *= *"([^"\n]+)"', re.MULTILINE)
"""From VMware's Virtual Disk Format 5.0."""


class Named(NamedTuple):
    """A file that an image names."""

    name: str
    format: str
    """QEMU's name of it; "": the image does not say. "raw" also for what names no files."""
    writable: bool


def image_files(path: str, config: DiskConfig) -> list[tuple[str, bool]]:
    """Return the files of the image *path*, and whether they are written.

    Raises `UserError`: a file cannot be read, is not a file, or is one of the chain twice; or the
    format of a backing file that looks like an image is not stated.
    """
    option = f"--disk {config.path}"
    found: dict[str, bool] = {}
    left = [(path, config.format, not config.read_only)]
    while left:
        name, kind, writable = left.pop()
        if name in found or len(found) >= MOST:
            raise UserError(f"{option}: {name} is in its chain of images twice, or too late")
        found[name] = writable
        try:
            os.stat(name)  # noqa: PTH116  (dear in a lab host)
            left += [_resolve(name, each, option, may=writable) for each in _named(name, kind)]
        except OSError as error:
            raise UserError(f"{option}: {name}: {error.strerror}", "name a disk image") from error
    return [*found.items()]


def _resolve(by: str, named: Named, option: str, *, may: bool) -> tuple[str, str, bool]:
    """Return the path, format and rights of the file that the image *by* names."""
    name = named.name.removeprefix("file:")
    if ":" in name.partition("/")[0]:
        raise UserError(
            f"{option}: {by} names {named.name!r}, which is no file",
            "an image's backing file has to be a file of this host",
        )
    path = os.path.join(os.path.dirname(by), name)  # noqa: PTH118, PTH120  (keeps ".." and links)
    kind = named.format or _looks_like(path)
    if not named.format and kind != "raw":
        raise UserError(
            f"{option}: {path} looks like a {kind} image, and {by} does not say that it is one",
            f"if you trust it: qemu-img rebase -u -b {name} -F {kind} {by}",
        )
    return path, kind, named.writable and may


def _looks_like(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(len(DESCRIPTOR))
    if start == DESCRIPTOR:
        return "vmdk"
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "raw")


def _named(path: str, kind: str) -> Iterator[Named]:
    """Yield the files that the image *path* of format *kind* names. Raises OSError."""
    if kind == "qcow2":
        return _named_by_qcow2(path)
    return _named_by_vmdk(path) if kind == "vmdk" else iter(())


def _named_by_qcow2(path: str) -> Iterator[Named]:
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(1 << CLUSTER_BITS[-1])
    if len(start) < HEADER_V2:
        return  # QEMU says so
    _, version, offset, size, bits = HEADER.unpack_from(start)
    start = start[: 1 << bits] if bits in CLUSTER_BITS else start
    extensions = dict(_extensions(start, version))
    if offset:
        form = extensions.get(BACKING_FORMAT, b"").decode(errors="replace")
        yield Named(os.fsdecode(start[offset:][:size]), form, writable=False)
    if data := extensions.get(DATA_FILE):
        yield Named(os.fsdecode(data), "raw", writable=True)


def _extensions(start: bytes, version: int) -> Iterator[tuple[int, bytes]]:
    at = HEADER_V2
    if version > 2 and len(start) >= LENGTH_AT + 4:
        at = int.from_bytes(start[LENGTH_AT:][:4], "big")
    while at + EXTENSION.size <= len(start):
        kind, size = EXTENSION.unpack_from(start, at)
        if not kind:
            return
        at += EXTENSION.size
        yield kind, start[at:][:size]
        at += (size + 7) & ~7


def _named_by_vmdk(path: str) -> Iterator[Named]:
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(LONGEST_DESCRIPTOR)
        text = start
        if start.startswith(b"KDMV") and len(start) >= VMDK_HEADER.size:
            *_, sector, sectors = VMDK_HEADER.unpack_from(start)
            file.seek(min(sector, 1 << 40) * 512)
            text = file.read(min(sectors * 512, LONGEST_DESCRIPTOR))
    if start.startswith(DESCRIPTOR):  # otherwise the one extent is the file itself
        for name in EXTENT.findall(text):
            yield Named(os.fsdecode(name), "raw", writable=True)
    for name in PARENT.findall(text)[:1]:
        yield Named(os.fsdecode(name), "vmdk", writable=False)
