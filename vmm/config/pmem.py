"""``--pmem``: a file as the guest's persistent memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmm.config.option import FLAG, Key, parse_keys, split
from vmm.config.size import parse_size
from vmm.errors import UserError


class PmemConfig(NamedTuple):
    """The file at *path*; its first *size* bytes, or all of it if *size* is 0."""

    path: Path
    read_only: bool = False
    size: int = 0


def parse_pmem(text: str) -> PmemConfig:
    """Parse ``PATH[,ro][,size=SIZE]``. Raises `UserError`."""
    path, *parts = split(text)
    if not path:
        raise UserError(f"--pmem: {text!r} names no file", "write PATH[,ro][,size=SIZE]")
    keys = {"ro": FLAG, "size": Key(lambda size: parse_size(size, f"--pmem {path},size"))}
    found = parse_keys(f"--pmem {text}", parts, keys, "options are ro and size=SIZE")
    return PmemConfig(Path(path), found.get("ro", False), found.get("size", 0))
