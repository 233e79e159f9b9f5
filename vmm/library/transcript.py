"""What a guest or a command has said: wait for a pattern in it."""

from __future__ import annotations

import re
import time
from typing import Final

from vmm.errors import GuestError

KEPT: Final = 16 << 20
"""Bytes kept; a guest that says more loses what it said first."""
SHOWN: Final = 2000
"""Bytes of the end that an error shows."""
PATIENCE: Final = 300.0
"""Seconds to wait by default: an emulated host that others use, too, is slow."""


class NotSaidError(GuestError):
    """A pattern that was waited for did not come, in time or before the end."""


class Transcript:
    """Bytes said so far. A kind of it knows how to wait for more (`more`) and when none come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._said = bytearray()
        self._read = 0  # bytes that a former `expect` went past
        self.said = 0
        """Bytes that were ever said."""

    @property
    def output(self) -> bytes:
        """All that was said and is kept, the last `KEPT` bytes."""
        return bytes(self._said)

    def add(self, data: bytes) -> None:
        """Append what was said."""
        self._said += data
        self.said += len(data)
        if (excess := len(self._said) - KEPT) > 0:
            del self._said[:excess]
            self._read = max(0, self._read - excess)

    def more(self, said: int, deadline: float) -> bool:
        """Wait until more than *said* bytes were said, or nothing more will be.

        Return False at *deadline* (`time.monotonic`, seconds).
        """
        raise NotImplementedError

    def end(self) -> str | None:
        """Return how it has ended, after which nothing more is said; None: it has not."""
        raise NotImplementedError

    def expect(self, pattern: str | bytes, timeout: float = PATIENCE) -> re.Match[bytes]:
        """Wait until what follows the last match matches *pattern*; return the match.

        *pattern* is a regular expression of `re`, *timeout* is in seconds. Raises `NotSaidError`,
        with the last that was said.
        """
        wanted = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + timeout
        while True:
            said, ended = self.said, self.end()  # first: what was said before the end counts
            if match := wanted.search(self._said, self._read):
                self._read = match.end()
                return match
            if ended is not None:
                raise NotSaidError(f"{self.name}: {ended}, without {pattern!r}; {self._tail()}")
            if not self.more(said, deadline):
                raise NotSaidError(f"{self.name}: no {pattern!r} in {timeout:g} s; {self._tail()}")

    def _tail(self) -> str:
        return f"its last words: {self._said[-SHOWN:].decode(errors='replace')!r}"
