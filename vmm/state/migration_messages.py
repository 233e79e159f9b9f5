"""What the two ends of a live migration say to each other between pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Round:
    """The pages of round *number*, from 0 on, were sent; on each connection.

    After the *last* one this connection has no more pages.
    """

    number: int
    last: bool


@dataclass(frozen=True)
class Failed:
    """The sender gives up: why, and what its user can do."""

    because: str
    remedy: str


NAMES: Final[dict[type, str]] = {Round: "round", Failed: "failed"}
