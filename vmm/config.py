"""What to build: plain, frozen, validated on construction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

UNITS: Final = {"": 20, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
"""Powers of two by suffix; a bare number counts MiB, as QEMU's and kvmtool's do."""

DEFAULT_MEMORY: Final = 512 << 20
DEFAULT_CMDLINE: Final = "console=ttyAMA0 panic=-1"
"""What a kernel gets that comes without a command line. ``panic=-1`` resets at once."""


def parse_size(text: str, option: str) -> int:
    """Return the bytes that *text* means: ``512``, ``512M``, ``2G``. Raises `UserError`."""
    match = re.fullmatch(r"(\d+)([BKMGT]?)(i?B)?", text.strip().upper().replace("I", "i"))
    if not match:
        raise UserError(f"{option}: {text!r} is not a size", "write 512M or 2G")
    return int(match[1]) << UNITS[match[2]]


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """One machine.

    memory   bytes of RAM
    cmdline  the kernel's command line; None: the image's own, or `DEFAULT_CMDLINE`
    """

    image: Path
    initrd: Path | None = None
    cmdline: str | None = None
    cpus: int = 1
    memory: int = DEFAULT_MEMORY
    reboot: bool = True

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError(f"--cpus: a machine has at least one CPU, not {self.cpus}")
        if self.memory <= 0:
            raise UserError("--memory: a machine has some", "use --memory 512M")
        if self.cmdline is not None and "\0" in self.cmdline:
            raise UserError("--cmdline: it contains a NUL character", "remove it")
