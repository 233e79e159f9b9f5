"""A driver's side of a virtqueue, as small as can be: split or packed, right or wrong on purpose.

It writes to guest memory what a driver would, and reads what the device has used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from tests.virtio.guarded import Guarded
from vmm._native import ffi
from vmm.dirty_pages import SHIFT
from vmm.memory import GuestMemory, Mapping
from vmm.virtio.queue import Areas, Format

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15

BASE = 0x4000_0000
SIZE = 1 << 20
HOLE = 0x10_0000
"""Between the two regions of guest memory."""
SECOND = BASE + SIZE + HOLE

BUFFERS = BASE + 0x4_0000
TABLES = BASE + 0x2_0000


class Buffer(NamedTuple):
    """What one descriptor describes."""

    address: int
    length: int
    writable: bool = False


class Memory:
    """Guest memory of two regions, of 1 MiB and 64 KiB, with a hole between, and guard pages."""

    def __init__(self, make: Callable[[int], Mapping] = Guarded) -> None:
        self.mappings = [make(SIZE), make(1 << 16)]
        bases = (BASE, SECOND)
        self.guest = GuestMemory(
            mapping.region(base) for base, mapping in zip(bases, self.mappings, strict=True)
        )
        self.guest.dirty.start()

    def pack(self, address: int, form: str, *values: int) -> None:
        self.guest.write(address, struct.pack("<" + form, *values))

    def unpack(self, address: int, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.guest.read(address, struct.calcsize("<" + form)))

    def unnoted(self) -> list[int]:
        """Return the pages of the first region that were written, and not noted as written.

        The driver's stores are noted by `GuestMemory.write`, the device's in C.
        """
        dirty, view = self.guest.dirty, self.mappings[0].view
        noted, zero = ffi.new("uint64_t[]", dirty.pages // 64 + 1), bytes(1 << SHIFT)
        dirty.take(noted)
        return [
            page
            for page in range(dirty.pages)
            if not noted[page // 64] >> page % 64 & 1
            and view[page << SHIFT : page + 1 << SHIFT] != zero
        ]

    def close(self) -> None:
        for mapping in self.mappings:
            mapping.close()


class SplitDriver:
    """The driver's side of a split virtqueue (2.7)."""

    def __init__(
        self, memory: Memory, size: int = 8, form: Format | None = None, at: int = BASE
    ) -> None:
        self.memory, self.size = memory, size
        self.form = form or Format(indirect=True)
        self.areas = Areas(at, at + 0x8000, at + 0xC000)
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.avail = self.seen = self.tables = 0

    def describe(
        self, table: int, index: int, buffer: Buffer, flags: int = 0, following: int = 0
    ) -> None:
        flags |= WRITE if buffer.writable else 0
        self.memory.pack(
            table + 16 * index, "QIHH", buffer.address, buffer.length, flags, following
        )

    def table(self, *buffers: Buffer) -> Buffer:
        """Write an indirect table; return the buffer that it is in."""
        at = TABLES + 0x400 * (self.tables % 64)
        self.tables += 1
        for index, buffer in enumerate(buffers):
            more = NEXT if index + 1 < len(buffers) else 0
            self.describe(at, index, buffer, more, index + 1 if more else 0)
        return Buffer(at, 16 * len(buffers))

    def add(self, *buffers: Buffer, indirect: bool = False) -> int:
        """Make a chain available; return its id."""
        flags = 0
        if indirect:
            buffers, flags = (self.table(*buffers),), INDIRECT
        numbers = [self.free.pop(0) for _ in buffers]
        for index, (number, buffer) in enumerate(zip(numbers, buffers, strict=True)):
            more = index + 1 < len(buffers)
            following = numbers[index + 1] if more else 0
            self.describe(
                self.areas.descriptors, number, buffer, flags | (NEXT if more else 0), following
            )
        self.chains[numbers[0]] = numbers
        self.offer(numbers[0])
        return numbers[0]

    def offer(self, head: int) -> None:
        self.memory.pack(self.areas.driver + 4 + 2 * (self.avail % self.size), "H", head)
        self.avail = (self.avail + 1) & 0xFFFF
        self.memory.pack(self.areas.driver + 2, "H", self.avail)

    def used(self) -> list[tuple[int, int]]:
        """Return the (id, length) of what was used since the last call."""
        found: list[tuple[int, int]] = []
        (index,) = self.memory.unpack(self.areas.device + 2, "H")
        while self.seen != index:
            place = self.areas.device + 4 + 8 * (self.seen % self.size)
            identity, length = self.memory.unpack(place, "II")
            self.free.extend(self.chains.pop(identity))
            found.append((identity, length))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def wants_notify(self) -> bool:
        """Tell whether the device wants a notification of the last chain that was added."""
        if self.form.event_idx:
            (event,) = self.memory.unpack(self.areas.device + 4 + 8 * self.size, "H")
            return event == (self.avail - 1) & 0xFFFF
        (flags,) = self.memory.unpack(self.areas.device, "H")
        return not flags & 1

    def suppress(self, event: int | None = None) -> None:
        """Ask for no interrupt, or with EVENT_IDX for one when *event* more chains were used."""
        if event is None:
            self.memory.pack(self.areas.driver, "H", 1)
        else:
            place = (self.seen + event - 1) & 0xFFFF
            self.memory.pack(self.areas.driver + 4 + 2 * self.size, "H", place)


class PackedDriver:
    """The driver's side of a packed virtqueue (2.8)."""

    def __init__(
        self, memory: Memory, size: int = 8, form: Format | None = None, at: int = BASE
    ) -> None:
        self.memory, self.size = memory, size
        self.form = form or Format(packed=True, indirect=True)
        self.areas = Areas(at, at + 0x8000, at + 0xC000)
        self.slot, self.wrap = 0, 1
        self.seen, self.seen_wrap = 0, 1
        self.last = (0, 1)
        self.chains: dict[int, int] = {}
        self.ids = 0
        self.tables = 0

    def describe(self, table: int, index: int, buffer: Buffer, identity: int, flags: int) -> None:
        flags |= WRITE if buffer.writable else 0
        self.memory.pack(table + 16 * index, "QIHH", buffer.address, buffer.length, identity, flags)

    def table(self, *buffers: Buffer) -> Buffer:
        at = TABLES + 0x400 * (self.tables % 64)
        self.tables += 1
        for index, buffer in enumerate(buffers):
            self.describe(at, index, buffer, 0, 0)
        return Buffer(at, 16 * len(buffers))

    def add(self, *buffers: Buffer, indirect: bool = False) -> int:
        """Make a chain available; return its id."""
        flags = 0
        if indirect:
            buffers, flags = (self.table(*buffers),), INDIRECT
        identity = self.ids = (self.ids + 1) & 0xFFFF
        self.chains[identity] = len(buffers)
        self.last = (self.slot, self.wrap)
        written = []
        for index, buffer in enumerate(buffers):
            more = NEXT if index + 1 < len(buffers) else 0
            mark = AVAIL if self.wrap else USED
            written.append((self.slot, buffer, flags | more | mark))
            self.slot += 1
            if self.slot == self.size:
                self.slot, self.wrap = 0, self.wrap ^ 1
        for slot, buffer, marked in reversed(written):  # the first one makes all available
            self.describe(self.areas.descriptors, slot, buffer, identity, marked)
        return identity

    def used(self) -> list[tuple[int, int]]:
        """Return the (id, length) of what was used since the last call."""
        found: list[tuple[int, int]] = []
        while True:
            place = self.areas.descriptors + 16 * self.seen
            _, length, identity, flags = self.memory.unpack(place, "QIHH")
            if not bool(flags & AVAIL) == bool(flags & USED) == bool(self.seen_wrap):
                return found
            found.append((identity, length))
            self.seen += self.chains.pop(identity)
            if self.seen >= self.size:
                self.seen, self.seen_wrap = self.seen - self.size, self.seen_wrap ^ 1

    def wants_notify(self) -> bool:
        """Tell whether the device wants a notification of the last chain that was added."""
        place, flags = self.memory.unpack(self.areas.device, "HH")
        if flags == 2:
            return (place & 0x7FFF, place >> 15) == self.last
        return flags == 0

    def suppress(self, event: int | None = None) -> None:
        """Ask for no interrupt, or with EVENT_IDX for one when *event* more chains were used."""
        if event is None:
            self.memory.pack(self.areas.driver, "HH", 0, 1)
        else:
            slot, wrap = self.seen + event - 1, self.seen_wrap
            if slot >= self.size:
                slot, wrap = slot - self.size, wrap ^ 1
            self.memory.pack(self.areas.driver, "HH", slot | wrap << 15, 2)


KINDS: dict[str, type[SplitDriver | PackedDriver]] = {
    "split": SplitDriver,
    "packed": PackedDriver,
}


def gather(ring: SplitDriver | PackedDriver, done: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Append what was used since the last call to *done*, and return that."""
    done += ring.used()
    return done
