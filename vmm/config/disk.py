"""``--disk``: a virtio block device, and the image or device behind it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from vmm.errors import UserError

SERIAL_BYTES: Final = 20
"""Longest serial number of a disk, in bytes (VIRTIO 1.2, 5.2.6.1)."""

QUEUES_MAX: Final = 64

FORMATS: Final = ("auto", "raw", "qcow2", "vmdk", "vhdx", "vhd")

CACHES: Final = ("auto", "writeback", "writethrough", "none", "directsync", "unsafe")
"""QEMU's names; `vmm.virtio.block.raw_image.CACHE_MODES` tells what they are for a raw disk."""

SYNTAX: Final = "PATH[,ro][,format=F][,cache=C][,serial=S][,queues=N]"


class DiskConfig(NamedTuple):
    """A disk: an image or block device at *path*.

    queues  number of queues; each has a thread
    format  one of `FORMATS`; "auto" looks at the image's first bytes
    cache   one of `CACHES`. "auto" is writeback for a raw image. For other formats, which a daemon
            serves, it is writethrough, so that written data survives the daemon's death
    """

    path: Path
    read_only: bool = False
    serial: str = ""
    queues: int = 1
    format: str = "auto"
    cache: str = "auto"

    @property
    def shares_memory(self) -> bool:
        """Whether a daemon serves the disk, and has to reach the guest's memory."""
        return self.format not in ("auto", "raw")


def parse_disk(text: str) -> DiskConfig:
    """Parse `SYNTAX`. Raises `UserError`."""
    path, *options = text.split(",")
    if not path:
        raise UserError(f"--disk: {text!r} names no file", f"write {SYNTAX}")
    disk = DiskConfig(Path(path))
    for option in options:
        if (value := _value(option)) is None:
            raise UserError(
                f"--disk {text}: cannot use {option!r}",
                f"options are ro, format={'|'.join(FORMATS)}, cache={'|'.join(CACHES)}, serial=S "
                f"(up to {SERIAL_BYTES} ASCII characters) and queues=N (up to {QUEUES_MAX})",
            )
        disk = disk._replace(**value)
    if disk.serial and disk.format not in ("auto", "raw"):
        raise UserError(f"--disk {text}: only a raw disk can have a serial number", "leave it out")
    return disk


def _value(option: str) -> dict[str, Any] | None:
    """Return the field that *option* sets, with its value; None if the option is unknown."""
    name, _, value = option.partition("=")
    if option == "ro":
        return {"read_only": True}
    if name == "serial" and value.isascii() and 0 < len(value) <= SERIAL_BYTES:
        return {"serial": value}
    if name == "queues" and re.fullmatch("[0-9]{1,2}", value) and 0 < int(value) <= QUEUES_MAX:
        return {"queues": int(value)}
    if (name == "format" and value in FORMATS) or (name == "cache" and value in CACHES):
        return {name: value}
    return None
