"""``--vsock``: sockets between host and guest."""

from __future__ import annotations

import re
from typing import Final

from vmm.errors import UserError

CIDS: Final = range(3, 0xFFFF_FFFF)
"""Context IDs that guests can have: 0 to 2, and the last one, mean others (vsock(7))."""


def parse_vsock(text: str) -> int:
    """Return the context ID that *text* is. Raises `UserError`."""
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) not in CIDS:
        raise UserError(
            f"--vsock: {text!r} is no guest's context ID", f"use one from {CIDS[0]} to {CIDS[-1]}"
        )
    return int(text)
