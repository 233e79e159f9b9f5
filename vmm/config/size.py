"""Sizes as users write them: ``512M``, ``2G``."""

from __future__ import annotations

import re
from typing import Final

from vmm.errors import UserError

UNITS: Final = {"": 20, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
"""Binary logarithm of each suffix's unit. A bare number counts MiB, as for QEMU and kvmtool."""


def parse_size(text: str, option: str) -> int:
    """Return *text* in bytes; *option* is what errors name. Raises `UserError`."""
    match = re.fullmatch(r"(\d{1,15})([BKMGT]?)(i?B)?", text.strip().upper().replace("I", "i"))
    if not match:
        raise UserError(f"{option}: {text!r} is not a size", "write 512M or 2G")
    return int(match[1]) << UNITS[match[2]]
