"""What a virtqueue must do, in Python and from the specification (VIRTIO 1.2, 2.7 and 2.8).

A `Model` has an image of guest memory of its own. It pops, pushes and suppresses as cdefs/ring.c
must, so that a test can compare every result, every buffer, and every byte of memory.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

from tests.virtio.ring_driver import AVAIL, INDIRECT, NEXT, USED, WRITE
from vmm._native import lib
from vmm.virtio.queue import Areas, Format

DESCRIPTOR: Final = 16
MOST: Final = 1 << 32


class Wrong(Exception):  # noqa: N818  (the driver's error, not ours)
    """The driver broke the ring. *code* is one of PYVMM_RING_*."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Image:
    """Guest memory as it has to be. *ranges* has base and size of each region, ascending.

    Those of more than 1 MiB are all zeroes and nobody writes to them.
    """

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self.ranges = ranges
        self.bytes = {base: bytearray(size) for base, size in ranges if size <= 1 << 20}
        self._bases = [base for base, _ in ranges]

    def range(self, address: int) -> tuple[int, int] | None:
        """Return base and size of the region that *address* is in."""
        at = bisect_right(self._bases, address) - 1
        if at < 0 or address >= sum(self.ranges[at]):
            return None
        return self.ranges[at]

    def contains(self, address: int, length: int) -> bool:
        """Tell whether one region has all of these bytes."""
        found = self.range(address)
        return found is not None and address + length <= sum(found)

    def read(self, address: int, size: int) -> bytes:
        found = self.range(address)
        assert found is not None, "a model reads guest memory only"
        if found[0] not in self.bytes:
            return bytes(size)
        start = address - found[0]
        return bytes(self.bytes[found[0]][start : start + size])

    def write(self, address: int, data: bytes) -> None:
        found = self.range(address)
        assert found is not None, "a model writes guest memory only"
        start = address - found[0]
        self.bytes[found[0]][start : start + len(data)] = data

    def number(self, address: int) -> int:
        """Return 16 bits."""
        return int.from_bytes(self.read(address, 2), "little")

    def put(self, address: int, form: str, *values: int) -> None:
        self.write(address, struct.pack("<" + form, *values))


@dataclass
class Popped:
    """A chain: its id, and (address, length) of each of its segments."""

    id: int = 0
    readable: list[tuple[int, int]] = field(default_factory=list)
    writable: list[tuple[int, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(length for _, length in self.readable + self.writable)


class Model:
    """One virtqueue, from the device's side."""

    def __init__(self, image: Image, size: int, areas: Areas, form: Format, capacity: int) -> None:
        self.image, self.size, self.areas, self.form = image, size, areas, form
        self.capacity = capacity
        self.taken: dict[int, int] = {}
        self.next_avail = self.next_used = 0
        self.avail_wrap = self.used_wrap = 1
        self.since = 0
        self.broken = self._configure()

    def _configure(self) -> int:
        size = self.size
        places = [(self.areas.descriptors, DESCRIPTOR * size, 16)]
        if self.form.packed:
            places += [(self.areas.driver, 4, 4), (self.areas.device, 4, 4)]
        else:
            places += [(self.areas.driver, 6 + 2 * size, 2), (self.areas.device, 6 + 8 * size, 4)]
            if size & (size - 1):
                return int(lib.PYVMM_RING_SIZE)
        for address, length, alignment in places:
            if not self.image.contains(address, length):
                return int(lib.PYVMM_RING_ADDRESS)
            if address % alignment:
                return int(lib.PYVMM_RING_ALIGNMENT)
        return 0

    @property
    def in_flight(self) -> int:
        return sum(self.taken.values())

    # Chains

    def pop(self) -> Popped | None:
        """Return the next available chain. Raises `Wrong`."""
        if self.broken:
            raise Wrong(self.broken)
        try:
            return self._pop_packed() if self.form.packed else self._pop_split()
        except Wrong as wrong:
            self.broken = wrong.code
            raise

    def _add(self, chain: Popped, address: int, length: int, *, writable: bool) -> None:
        if length == 0:
            raise Wrong(lib.PYVMM_RING_EMPTY)
        if chain.writable and not writable:
            raise Wrong(lib.PYVMM_RING_ORDER)
        if address + length >= 1 << 64:
            raise Wrong(lib.PYVMM_RING_ADDRESS)
        if chain.bytes + length > MOST:
            raise Wrong(lib.PYVMM_RING_LENGTH)
        while length:
            found = self.image.range(address)
            if found is None:
                raise Wrong(lib.PYVMM_RING_ADDRESS)
            if len(chain.readable) + len(chain.writable) == self.capacity:
                raise Wrong(lib.PYVMM_RING_SEGMENTS)
            part = min(length, sum(found) - address)
            (chain.writable if writable else chain.readable).append((address, part))
            address, length = address + part, length - part

    def _descriptor(self, table: int, index: int) -> tuple[int, int, int, int]:
        return struct.unpack("<QIHH", self.image.read(table + DESCRIPTOR * index, DESCRIPTOR))

    def _table(self, address: int, length: int) -> int:
        """Check an indirect table; return how many descriptors it has."""
        if length == 0 or length % DESCRIPTOR:
            raise Wrong(lib.PYVMM_RING_TABLE)
        if not self.image.contains(address, length):
            raise Wrong(lib.PYVMM_RING_ADDRESS)
        return length // DESCRIPTOR

    def _pop_split(self) -> Popped | None:
        driver = self.areas.driver
        waiting = (self.image.number(driver + 2) - self.next_avail) & 0xFFFF
        if not waiting:
            return None
        if waiting + self.in_flight > self.size:
            raise Wrong(lib.PYVMM_RING_INDEX)
        head = self.image.number(driver + 4 + 2 * (self.next_avail % self.size))
        if head >= self.size:
            raise Wrong(lib.PYVMM_RING_DESCRIPTOR)
        if head in self.taken:
            raise Wrong(lib.PYVMM_RING_REUSED)
        chain = Popped(head)
        self._walk_split(chain, head)
        self.taken[head] = 1
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        return chain

    def _walk_split(self, chain: Popped, at: int) -> None:
        table, entries, outside = self.areas.descriptors, self.size, True
        left = entries
        while True:
            if not left:
                raise Wrong(lib.PYVMM_RING_LOOP)
            left -= 1
            address, length, flags, following = self._descriptor(table, at)
            if flags & INDIRECT:
                if not outside:
                    raise Wrong(lib.PYVMM_RING_NESTED)
                if flags & NEXT or not self.form.indirect:
                    raise Wrong(lib.PYVMM_RING_INDIRECT)
                entries = left = self._table(address, length)
                table, at, outside = address, 0, False
                continue
            self._add(chain, address, length, writable=bool(flags & WRITE))
            if not flags & NEXT:
                return
            if following >= entries:
                raise Wrong(lib.PYVMM_RING_DESCRIPTOR)
            at = following

    def _pop_packed(self) -> Popped | None:
        flags = self._descriptor(self.areas.descriptors, self.next_avail)[3]
        if bool(flags & AVAIL) != bool(self.avail_wrap) or bool(flags & USED) == bool(
            self.avail_wrap
        ):
            return None
        chain = Popped()
        slots = self._walk_packed(chain)
        if self.in_flight + slots > self.size:
            raise Wrong(lib.PYVMM_RING_INDEX)
        if chain.id in self.taken:
            raise Wrong(lib.PYVMM_RING_REUSED)
        self.taken[chain.id] = slots
        self.next_avail, self.avail_wrap = self._after(self.next_avail, self.avail_wrap, slots)
        return chain

    def _after(self, slot: int, wrap: int, slots: int) -> tuple[int, int]:
        """Return the place that many *slots* on."""
        rounds, slot = divmod(slot + slots, self.size)
        return slot, wrap ^ (rounds & 1)

    def _walk_packed(self, chain: Popped) -> int:
        for slots in range(self.size):
            at = (self.next_avail + slots) % self.size
            address, length, identity, flags = self._descriptor(self.areas.descriptors, at)
            if flags & INDIRECT:
                if not self.form.indirect or slots or flags & NEXT:
                    raise Wrong(lib.PYVMM_RING_INDIRECT)
                for index in range(self._table(address, length)):
                    inner = self._descriptor(address, index)
                    if inner[3] & INDIRECT:
                        raise Wrong(lib.PYVMM_RING_NESTED)
                    self._add(chain, inner[0], inner[1], writable=bool(inner[3] & WRITE))
            else:
                self._add(chain, address, length, writable=bool(flags & WRITE))
            if not flags & NEXT:
                chain.id = identity
                return slots + 1
        raise Wrong(lib.PYVMM_RING_LOOP)

    def push(self, identity: int, length: int) -> bool:
        """Return a chain to the driver; return whether the device has it."""
        if self.broken or identity not in self.taken:
            return False
        slots = self.taken.pop(identity)
        image, areas = self.image, self.areas
        if self.form.packed:
            flags = (AVAIL | USED) * self.used_wrap | WRITE * bool(length)
            place = areas.descriptors + DESCRIPTOR * self.next_used
            image.put(place + 8, "IHH", length, identity, flags)
            self.next_used, self.used_wrap = self._after(self.next_used, self.used_wrap, slots)
        else:
            place = areas.device + 4 + 8 * (self.next_used % self.size)
            image.put(place, "II", identity, length)
            self.next_used = (self.next_used + 1) & 0xFFFF
            image.put(areas.device + 2, "H", self.next_used)
        self.since = min(self.since + slots, 0xFFFF)
        return True

    # Notifications and interrupts

    def has_available(self) -> bool:
        if self.form.packed:
            flags = self._descriptor(self.areas.descriptors, self.next_avail)[3]
            return bool(flags & AVAIL) == bool(self.avail_wrap) != bool(flags & USED)
        return self.image.number(self.areas.driver + 2) != self.next_avail

    def enable_notify(self) -> bool:
        if self.broken:
            return False
        device = self.areas.device
        if self.form.packed:
            place = self.next_avail | self.avail_wrap << 15
            self.image.put(device, "HH", place, 2 if self.form.event_idx else 0)
        elif self.form.event_idx:
            self.image.put(device + 4 + 8 * self.size, "H", self.next_avail)
        else:
            self.image.put(device, "H", 0)
        return self.has_available()

    def disable_notify(self) -> None:
        if self.broken:
            return
        if self.form.packed:
            self.image.put(self.areas.device + 2, "H", 1)
        elif not self.form.event_idx:
            self.image.put(self.areas.device, "H", 1)

    def should_interrupt(self) -> bool:
        since, driver = self.since, self.areas.driver
        if self.broken or not since:
            return False
        self.since = 0
        if not self.form.packed:
            if not self.form.event_idx:
                return not self.image.number(driver) & 1
            event = self.image.number(driver + 4 + 2 * self.size)
            return (self.next_used - 1 - event) & 0xFFFF < since
        place, flags = self.image.number(driver), self.image.number(driver + 2) & 3
        if flags != 2 or not self.form.event_idx:
            return flags != 1
        slot = place & 0x7FFF
        if place >> 15 != self.used_wrap:
            slot -= self.size
        return since >= self.size or (self.next_used - 1 - slot) & 0xFFFF < since
