"""``--disk``: a block device, and what is behind it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from vmm.errors import UserError

SERIAL_BYTES: Final = 20
"""How long a disk's serial number can be (VIRTIO 1.2, 5.2.6.1)."""

QUEUES_MAX: Final = 64


class DiskConfig(NamedTuple):
    """A disk: a raw image or block device at *path*.

    queues  requests are done in as many threads
    """

    path: Path
    read_only: bool = False
    serial: str = ""
    queues: int = 1


def parse_disk(text: str) -> DiskConfig:
    """Return what ``PATH[,ro][,serial=S][,queues=N]`` means. Raises `UserError`."""
    path, *options = text.split(",")
    if not path:
        raise UserError(f"--disk: {text!r} names no file", "write PATH[,ro][,serial=S][,queues=N]")
    read_only, serial, queues = False, "", 1
    for option in options:
        name, _, value = option.partition("=")
        if option == "ro":
            read_only = True
        elif name == "serial" and value.isascii() and 0 < len(value) <= SERIAL_BYTES:
            serial = value
        elif (
            name == "queues" and re.fullmatch("[0-9]{1,2}", value) and 0 < int(value) <= QUEUES_MAX
        ):
            queues = int(value)
        else:
            raise UserError(
                f"--disk {text}: cannot use {option!r}",
                f"options are ro, serial=S (up to {SERIAL_BYTES} ASCII characters) and queues=N "
                f"(up to {QUEUES_MAX})",
            )
    return DiskConfig(Path(path), read_only, serial, queues)
