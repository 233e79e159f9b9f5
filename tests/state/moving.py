"""RAM, a log of stores and connected channels, without a VM."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import ExitStack, suppress
from threading import Lock, Thread
from typing import Any

from vmm._native import lib
from vmm.coherence.ledger import Entry, Ledger
from vmm.coherence.policy import MANAGED, Promise, Stage2
from vmm.dirty_pages import SHIFT, DirtyPages
from vmm.memory import Backing, Mapping, Region
from vmm.state.reception import Reception
from vmm.state.stream import Channel

BASE = 0x4000_0000
PAGE = 1 << SHIFT
TEXT, RAW, ZERO = lib.PYVMM_FRAME_TEXT, lib.PYVMM_FRAME_RAW, lib.PYVMM_FRAME_ZERO
PAGES = 8


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


def frame(kind: int, count: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("<IIQ", kind, count, len(body) if size is None else size) + body


def runs(*each: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", offset * PAGE, length * PAGE) for offset, length in each)


def text(value: object) -> bytes:
    return frame(TEXT, 0, json.dumps(value).encode())


END = text({"message": "round", "number": 0, "last": True})


def received(data: bytes) -> bytes:
    """Return RAM after the stream *data*, whose sender then hangs up. Raises `VmmError`."""
    with ExitStack() as owned:
        near, far = socket.socketpair()
        channel = owned.enter_context(Channel(far, "the source"))
        region = ram(owned, PAGES * PAGE)

        def feed() -> None:
            with near, suppress(OSError):
                near.sendall(data)

        feeder = Thread(target=feed, daemon=True)
        feeder.start()
        try:
            Reception(region, [channel]).run()
            return bytes(region.view)
        finally:
            channel.interrupt()
            feeder.join()
