"""``--disk``: a virtio block device, and the image or device behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.option import FLAG, Key, choice, number, parse_keys, split
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

    queues   number of queues; each has a thread
    format   one of `FORMATS`; "auto" looks at the image's first bytes
    guessed  whether "auto" was replaced by what the image looks like
    cache    one of `CACHES`. "auto" is writeback for a raw image. For other formats, which a daemon
             serves, it is writethrough, so that written data survives the daemon's death
    """

    path: Path
    read_only: bool = False
    serial: str = ""
    queues: int = 1
    format: str = "auto"
    cache: str = "auto"
    guessed: bool = False

    @property
    def shares_memory(self) -> bool:
        """Whether a daemon serves the disk, and has to reach the guest's memory."""
        return self.format not in ("auto", "raw")


def _serial(text: str) -> str:
    if not text.isascii() or not 0 < len(text) <= SERIAL_BYTES:
        raise ValueError(f"a serial number has up to {SERIAL_BYTES} ASCII characters")
    return text


KEYS: Final = {
    "ro": FLAG,
    "format": choice(*FORMATS),
    "cache": choice(*CACHES),
    "serial": Key(_serial),
    "queues": number(range(1, QUEUES_MAX + 1), "queues"),
}


def parse_disk(text: str) -> DiskConfig:
    """Parse `SYNTAX`. Raises `UserError`."""
    path, *parts = split(text)
    if not path:
        raise UserError(f"--disk: {text!r} names no file", f"write {SYNTAX}")
    usage = (
        f"options are ro, format={'|'.join(FORMATS)}, cache={'|'.join(CACHES)}, serial=S "
        f"(up to {SERIAL_BYTES} ASCII characters) and queues=N (up to {QUEUES_MAX})"
    )
    found = parse_keys(f"--disk {text}", parts, KEYS, usage)
    disk = DiskConfig(Path(path), read_only=found.pop("ro", False), **found)
    if disk.serial and disk.format not in ("auto", "raw"):
        raise UserError(f"--disk {text}: only a raw disk can have a serial number", "leave it out")
    return disk
