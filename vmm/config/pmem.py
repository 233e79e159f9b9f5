"""``--pmem``: a file as the guest's persistent memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmm.config.size import parse_size
from vmm.errors import UserError


class PmemConfig(NamedTuple):
    """The file at *path*; its first *size* bytes, or all of it if *size* is 0."""

    path: Path
    read_only: bool = False
    size: int = 0


def parse_pmem(text: str) -> PmemConfig:
    """Parse ``PATH[,ro][,size=SIZE]``. Raises `UserError`."""
    path, *options = text.split(",")
    if not path:
        raise UserError(f"--pmem: {text!r} names no file", "write PATH[,ro][,size=SIZE]")
    read_only, size = False, 0
    for option in options:
        name, _, value = option.partition("=")
        if option == "ro":
            read_only = True
        elif name == "size":
            size = parse_size(value, f"--pmem {path},size")
        else:
            raise UserError(f"--pmem {text}: cannot use {option!r}", "options are ro and size=SIZE")
    return PmemConfig(Path(path), read_only, size)
