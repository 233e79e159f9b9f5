"""``--vsock``: AF_VSOCK sockets between host and guest."""

from __future__ import annotations

import re
from typing import Final

from vmm.errors import UserError

CIDS: Final = range(3, 0xFFFF_FFFF)
"""Context IDs for guests. 0 to 2 and 0xffffffff are reserved (vsock(7))."""


def parse_vsock(text: str) -> int:
    """Parse a context ID. Raises `UserError`."""
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) not in CIDS:
        raise UserError(
            f"--vsock: {text!r} is no guest's context ID", f"use one from {CIDS[0]} to {CIDS[-1]}"
        )
    return int(text)
