"""``--pmem``: a file as the guest's persistent memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmm.config.option import FLAG, Key, parse_keys, split
from vmm.config.size import parse_size
from vmm.errors import UserError


class PmemConfig(NamedTuple):
    """The file at *path*; its first *size* bytes, or all of it if *size* is 0.

    mapped  the name of the same file in a lab host, where it can be mapped; None: it is *path*
    """

    path: Path
    read_only: bool = False
    size: int = 0
    mapped: Path | None = None

    @property
    def option(self) -> str:
        """The option, as errors name it."""
        return f"--pmem {self.path}"

    @property
    def text(self) -> str:
        """The option's argument: what `parse_pmem` makes this of, of the file at *mapped*."""
        path = str(self.mapped or self.path).replace(",", ",,")
        size = f",size={self.size}B" if self.size else ""
        return f"{path}{',ro' * self.read_only}{size}"


def parse_pmem(text: str) -> PmemConfig:
    """Parse ``PATH[,ro][,size=SIZE]``. Raises `UserError`."""
    path, *parts = split(text)
    if not path:
        raise UserError(f"--pmem: {text!r} names no file", "write PATH[,ro][,size=SIZE]")
    keys = {"ro": FLAG, "size": Key(lambda size: parse_size(size, f"--pmem {path},size"))}
    found = parse_keys(f"--pmem {text}", parts, keys, "options are ro and size=SIZE")
    return PmemConfig(Path(path), found.get("ro", False), found.get("size", 0))
