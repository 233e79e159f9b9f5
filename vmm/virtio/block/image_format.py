"""Find out a disk image's format from its first bytes."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config import MachineConfig
    from vmm.config.disk import DiskConfig

MAGIC: Final = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vhd"}
"""From QEMU's docs/interop/qcow2, and VMware's and Microsoft's specifications."""

QCOW2: Final = struct.Struct(">4sIQ")
"""Magic, version, and the offset of the backing file's name: 0 if there is none."""
INCOMPATIBLE: Final = struct.Struct(">Q")
INCOMPATIBLE_AT: Final = 72
"""Offset of the incompatible features in the header, from version 3 on."""
EXTERNAL_DATA_FILE: Final = 1 << 2
ENOUGH: Final = INCOMPATIBLE_AT + INCOMPATIBLE.size


def with_formats(config: MachineConfig) -> MachineConfig:
    """Return *config* with the formats of its disks' images in place of "auto".

    Each image is read once here, and never again for a decision. Raises `UserError`.
    """
    return replace(config, disks=tuple(with_format(disk) for disk in config.disks))


def with_format(config: DiskConfig) -> DiskConfig:
    """Return *config* with its image's format in place of "auto". Raises `UserError`."""
    if config.format != "auto":
        return config
    return config._replace(format=image_format(config), guessed=True)


def image_format(config: DiskConfig) -> str:
    """Return the format of a disk's image: the configured one or, for "auto", what it looks like.

    A guest can make its raw disk look like another format and wait for the next boot. So an image
    that may name other files of the host is refused unless the user gives its format. Raises
    `UserError`.
    """
    if config.format != "auto":
        return config.format
    option = f"--disk {config.path}"
    start = _start(config.path, option)
    for magic, name in MAGIC.items():
        if start.startswith(magic):
            if name == "qcow2" and not _names_files(start):
                return name
            raise UserError(
                f"{option}: it looks like a {name} image that may name other files, and a guest "
                "can make its disk look so",
                f"if you trust it, say so: --disk {config.path},format={name}",
            )
    return "raw"


def _start(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ENOUGH)
    except OSError as error:
        raise UserError(f"{option}: {error.strerror}", "name a disk image") from error


def _names_files(start: bytes) -> bool:
    """Return whether a qcow2 image has a backing file or an external data file."""
    if len(start) < QCOW2.size:
        return False  # too short for an image: whoever opens it will say so
    _, version, backing_file = QCOW2.unpack_from(start)
    if backing_file:
        return True
    if version < 3 or len(start) < ENOUGH:
        return False
    (incompatible,) = INCOMPATIBLE.unpack_from(start, INCOMPATIBLE_AT)
    return bool(incompatible & EXTERNAL_DATA_FILE)
