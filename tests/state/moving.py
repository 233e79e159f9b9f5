"""RAM, a log of stores and connected channels, without a VM."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from threading import Lock
from typing import Any

from vmm.coherence.ledger import Entry, Ledger
from vmm.coherence.policy import MANAGED, Promise, Stage2
from vmm.dirty_pages import SHIFT, DirtyPages
from vmm.memory import Backing, Mapping, Region
from vmm.state.stream import Channel

BASE = 0x4000_0000
PAGE = 1 << SHIFT


def ledger(size: int, stage2: Stage2 = Stage2.FORCED_WRITE_BACK) -> Ledger:
    promise = Promise(stage2, "a test")
    return Ledger([Entry("RAM", BASE, size, Backing.ANONYMOUS, MANAGED, promise, 0)])


def pair(owned: ExitStack) -> tuple[Channel, Channel]:
    """Return both ends of a connection."""
    source, destination = socket.socketpair()
    return (
        owned.enter_context(Channel(source, "destination")),
        owned.enter_context(Channel(destination, "source")),
    )


def ram(owned: ExitStack, size: int) -> Region:
    return owned.enter_context(Mapping.anonymous(size)).region(BASE)


class Stores:
    """Stores of a guest, logged as KVM does: fetched together, told again once cleared."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._lock = Lock()
        self._logged: set[int] = set()

    def store(self, page: int, value: int) -> None:
        with self._lock:
            self._region.view[page * PAGE + page % 64] = value
            self._logged.add(page)

    def fetch(self, into: Any) -> int:
        with self._lock:
            for page in self._logged:
                into[page // 64] |= 1 << page % 64
        return sum(int(into[word]).bit_count() for word in range(words(self._region)))

    def clear(self, first: int, pages: int, bitmap: Any) -> None:
        with self._lock:
            self._logged -= {first + n for n in range(pages) if bitmap[n // 64] >> n % 64 & 1}


def words(region: Region) -> int:
    pages = -(-region.size >> SHIFT)
    return -(-pages // 64)


def noted(region: Region) -> DirtyPages:
    """Return notes of this process's own stores, begun."""
    notes = DirtyPages(region.host_address, region.size)
    notes.start()
    return notes
