"""Bytes for a client that may be slow: as many as there is room for; the others are counted."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM: Final = 1 << 20
"""Bytes that wait for one client."""


class Outbox:
    """A bounded queue of bytes. Thread-safe.

    *lost* returns what stands for so many bytes that found no room. It comes where they would
    have been; the next ones are taken once half of the room is free.
    """

    def __init__(self, lost: Callable[[int], bytes], room: int = ROOM) -> None:
        self._lock = Lock()
        self._lost = lost
        self._room = room
        self._bytes = bytearray()
        self._missing = 0

    def put(self, data: bytes) -> bool:
        """Add *data*, all of it or nothing; return whether the queue was empty before."""
        with self._lock:
            empty = not self._bytes
            if self._missing or len(self._bytes) + len(data) > self._room:
                self._missing += len(data)
            else:
                self._bytes += data
            return empty

    def take(self, most: int) -> bytes:
        """Remove up to *most* bytes, the first ones, and return them; b"": there are none."""
        with self._lock:
            data = bytes(self._bytes[:most])
            del self._bytes[:most]
            if self._missing and len(self._bytes) <= self._room // 2:
                self._bytes += self._lost(self._missing)
                self._missing = 0
            return data
