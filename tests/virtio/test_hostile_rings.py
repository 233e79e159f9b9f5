"""Hostile rings against a model: each result, each buffer, and each byte of memory is as it must be.

Nothing else changes: not what is outside of a chain's writable buffers, not the used ring beyond
what was returned, nothing at all once the ring is broken.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.guarded import Guarded, GuardedArray
from tests.virtio.ring_driver import AVAIL, BASE, INDIRECT, NEXT, USED, WRITE
from tests.virtio.ring_model import Image, Model, Popped, Wrong
from vmm._native import lib
from vmm.memory import GuestMemory
from vmm.virtio.queue import PACKED_IDS, WRONG, Areas, Chain, Format, MemoryMap, Queue, RingError

KIB64 = 1 << 16
LOW, HIGH, FAR, VAST = BASE, BASE + KIB64, BASE + 3 * KIB64, 1 << 33
"""Regions: the first two adjoin for the guest, and no two for the host."""
RANGES = [(LOW, KIB64), (HIGH, KIB64), (FAR, KIB64), (VAST, 3 << 30)]
RING, DATA, TABLES = LOW + 0x1000, LOW + 0x4000, HIGH + 0x8000
TWO_TO_64 = 1 << 64
STEPS = 60

BUFFERS = (DATA, DATA + 1, LOW, HIGH + 8, FAR, FAR + 40)
ENDS = (HIGH - 8, HIGH + KIB64 - 64, FAR + KIB64 - 64)
"""Where no ring is, or sometimes one is."""
ODD_BUFFERS = (
    *(LOW - 1, HIGH + KIB64, HIGH + KIB64 - 1, FAR - 1, FAR + KIB64 - 1, FAR + KIB64, 0),
    *(VAST, VAST + (1 << 30), VAST + (3 << 30) - 1, TWO_TO_64 - 1, TWO_TO_64 - 16, RING),
)
LENGTHS = (1, 2, 7, 16, 16, 24, 33, 64)
ODD_LENGTHS = (0, 65, 4096, KIB64, KIB64 + 1, 2 * KIB64, 3 * KIB64, 1 << 31, TWO_TO_64 - 1)


class World:
    """Guest memory between guard pages, its image, and a queue with its model."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.mappings = [Guarded(size) for _, size in RANGES]
        guest = GuestMemory(
            mapping.region(base) for (base, _), mapping in zip(RANGES, self.mappings, strict=True)
        )
        self.guest, self.known = guest, MemoryMap(guest)
        self.image = Image(RANGES)
        self.form = Format(*(random.random() < 0.5 for _ in range(2)), random.random() < 0.8)
        self.size = random.choice((1, 2, 3, 4, 5, 8, 8) if self.form.packed else (1, 2, 4, 8, 8))
        if random.random() < 0.03:
            self.size = 6
        self.capacity = random.choice((2, 3, 20, 20, 20, 20))
        self.areas = self.place()
        self.model = Model(self.image, self.size, self.areas, self.form, self.capacity)
        self.chains = [Chain(self.capacity), Chain(self.capacity)]
        self._arrays: list[GuardedArray] = []
        for chain in self.chains:  # behind the last segment is a guard page
            chain._segments = chain.c.segments = self._array("struct iovec", self.capacity)
            chain._addresses = chain.c.addresses = self._array("uint64_t", self.capacity)
        rings = [area >> 16 for area in self.areas if area & 0xFFFF > KIB64 // 2]
        self.places = BUFFERS + tuple(at for at in ENDS if at >> 16 not in rings)
        self.held: list[int] = []
        self.offered: list[int] = []
        self.slot, self.wrap, self.avail = 0, 1, 0
        self.found: Counter[str] = Counter()

    def _array(self, kind: str, count: int) -> object:
        array = GuardedArray(kind, count)
        self._arrays.append(array)
        return array.c

    def close(self) -> None:
        for each in (*self.mappings, *self._arrays):
            each.close()

    def write(self, address: int, data: bytes) -> None:
        """Let the driver write, as far as there is memory."""
        for at in range(0, len(data), 2):
            if self.image.contains(address + at, 2):
                self.image.write(address + at, data[at : at + 2])
                self.guest.write(address + at, data[at : at + 2])

    def check(self) -> None:
        """Check that all of memory is as the model has it."""
        for (base, _), mapping in zip(RANGES, self.mappings, strict=True):
            if base in self.image.bytes:
                assert mapping.view == self.image.bytes[base], self.difference(base)

    def difference(self, base: int) -> str:
        """Say where memory differs from what it has to be."""
        has, must = self.guest.read(base, KIB64), self.image.bytes[base]
        at = next(at for at in range(KIB64) if has[at] != must[at])
        return f"{base + at:#x}: {has[at : at + 16].hex()} and not {must[at : at + 16].hex()}"

    def place(self) -> Areas:
        """Choose where the ring is: sometimes up to the last byte of memory, or beyond it."""
        random, size = self.random, self.size
        behind = HIGH + KIB64
        first = [RING, RING, HIGH - 16 * size] if random.random() < 0.9 else [RING + 8, LOW - 16]
        driver, device = [RING + 0x1000], [RING + 0x2000]
        if random.random() < 0.06:
            first += [HIGH - 16 * size + 16, FAR + KIB64 - 16 * size + 16]
        if self.form.packed:
            driver += [behind - 4, behind - 4]
            device += [FAR + KIB64 - 4] * 2
            if random.random() < 0.06:
                driver, device = [behind - 2, RING + 0x1002], [FAR + KIB64, RING + 0x2002]
        else:
            driver += [behind - 6 - 2 * size] * 2
            device += [FAR + KIB64 - 8 - 8 * size] * 2
            if random.random() < 0.06:
                driver += [behind - 4 - 2 * size, RING + 0x1001]
                device += [FAR + KIB64 - 4 - 8 * size, FAR + KIB64 - 8 - 4 * size, RING + 0x2002]
        return Areas(*map(random.choice, (first, driver, device)))

    def queue(self) -> Queue | None:
        """Return the queue, if the model has one."""
        if self.model.broken:
            with pytest.raises(RingError) as caught:
                Queue(self.known, self.size, self.areas, self.form)
            assert caught.value.code == self.model.broken
            self.found[WRONG[self.model.broken]] += 1
            return None
        queue = Queue(self.known, self.size, self.areas, self.form)
        if not self.form.packed:  # behind the last id is a guard page
            queue.c.taken = self._array("uint16_t", self.size)
        return queue

    # The driver

    def buffers(self, count: int) -> list[tuple[int, int, int]]:
        """Return address, length and flags of *count* buffers, readable ones first."""
        random = self.random
        readable = random.randrange(count + 1)
        if random.random() < 0.02:  # 4 GiB and more
            return [(VAST, 1 << 31, 0 if at < readable else WRITE) for at in range(count)]
        return [
            (random.choice(self.places), random.choice(LENGTHS), 0 if at < readable else WRITE)
            for at in range(count)
        ]

    def spoil(self, address: int, length: int, flags: int) -> tuple[int, int, int]:
        """Make one field wrong, now and then."""
        random = self.random
        if random.random() > 0.03:
            return address, length, flags
        return random.choice(
            (
                (random.choice(ODD_BUFFERS), length, flags),
                (address, random.choice(ODD_LENGTHS) & 0xFFFF_FFFF, flags),
                (VAST, random.choice((1 << 31, 3 << 29, 1 << 30)), flags),
                (VAST, 3 << 30, flags),
                (address, length, flags ^ random.choice((NEXT, WRITE, INDIRECT))),
                (address, length, flags | 1 << random.randrange(16)),
            )
        )

    def table(self, at: int, chain: list[tuple[int, int, int]]) -> None:
        """Write an indirect table."""
        random = self.random
        for index, (address, length, flags) in enumerate(chain):
            more = NEXT if index + 1 < len(chain) and not self.form.packed else 0
            address, length, flags = self.spoil(address, length, flags | more)
            following = index + 1
            if random.random() < 0.03:
                following = random.choice((0, index, len(chain), len(chain) + 1, 0xFFFF))
            last = (random.choice((0, 77)), flags) if self.form.packed else (flags, following)
            self.write(at + 16 * index, struct.pack("<QIHH", address, length, *last))

    def outer(self, most: int) -> list[tuple[int, int, int]]:
        """Return descriptors for the ring: buffers, or the last is a table."""
        random = self.random
        if random.random() < (0.35 if self.form.indirect else 0.02):
            counts = [count for count in (1, 2, 3, 6) if count < self.capacity]
            inner = self.buffers(random.choice(counts if random.random() < 0.98 else (6, 21)))
            at = random.choice((TABLES, FAR + KIB64 - 16 * len(inner)))
            self.table(at, inner)
            length = 16 * len(inner)
            if random.random() < 0.08:
                length = random.choice((0, 8, 15, length + 1, length + 16, length - 16, KIB64, 1 << 31))
            table = (at, length & 0xFFFF_FFFF, INDIRECT)
            if random.random() < (0.02 if self.form.packed else 0.15) and most > 1:
                return [(DATA, 16, 0), table]
            return [table]
        return self.buffers(random.randint(1, most))

    def drive(self) -> None:
        """Make a chain available."""
        if self.form.packed:
            self._drive_packed()
        else:
            self._drive_split()

    def _drive_packed(self) -> None:
        random, size = self.random, self.size
        ahead = (self.slot - self.model.next_avail) % size
        room = size - self.model.in_flight - ahead
        if room < 1 and random.random() < 0.99:
            return
        most = max(1, room) if random.random() < 0.98 else size
        chain = self.outer(most)
        identity = random.choice((0, 1, 5, size, 0xFFFF, random.getrandbits(16)))
        if random.random() < 0.98 and (identity in self.model.taken or identity in self.offered):
            return
        written = []
        for index, (address, length, flags) in enumerate(chain):
            more = NEXT if index + 1 < len(chain) else 0
            address, length, flags = self.spoil(address, length, flags | more)
            flags |= AVAIL if self.wrap else USED
            if random.random() < 0.02:
                flags ^= random.choice((AVAIL, USED, AVAIL | USED))
            last = identity if index + 1 == len(chain) else random.getrandbits(16)
            data = struct.pack("<QIHH", address, length, last, flags)
            written.append((self.areas.descriptors + 16 * self.slot, data))
            self.slot += 1
            if self.slot == size:
                self.slot, self.wrap = 0, self.wrap ^ 1
        for place, data in written:
            self.write(place, data)
        self.offered.append(identity)

    def _drive_split(self) -> None:
        random, size = self.random, self.size
        free = [head for head in range(size) if head not in {*self.model.taken, *self.offered}]
        waiting = (self.avail - self.model.next_avail) & 0xFFFF
        if waiting + len(self.model.taken) >= size and random.random() < 0.99:
            return
        if not free or random.random() < 0.02:
            free = list(range(size))
        chain = self.outer(len(free))
        numbers = random.sample(free, min(len(chain), len(free)))
        for index, (number, (address, length, flags)) in enumerate(
            zip(numbers, chain, strict=False)
        ):
            more = NEXT if index + 1 < len(numbers) else 0
            address, length, flags = self.spoil(address, length, flags | more)
            following = numbers[index + 1] if more else random.randrange(size)
            if random.random() < 0.03:
                following = random.choice((number, numbers[0], size, size + 1, 0xFFFF))
            data = struct.pack("<QIHH", address, length, flags, following)
            self.write(self.areas.descriptors + 16 * number, data)
        head = numbers[0]
        if random.random() < 0.02:
            head = random.choice((size, size + 1, 0xFFFF, random.randrange(size)))
        self.write(self.areas.driver + 4 + 2 * (self.avail % size), struct.pack("<H", head))
        self.offered.append(head)
        self.avail += 1
        if random.random() < 0.02:
            self.avail += random.choice((1, size - 1, size, size + 1, -1, 1 << 15))
        self.avail &= 0xFFFF
        self.write(self.areas.driver + 2, struct.pack("<H", self.avail))

    def suppress(self) -> None:
        """Let the driver write what says when to interrupt."""
        random, driver = self.random, self.areas.driver
        if self.form.packed:
            slot = (self.model.next_used + random.randrange(-3, 4)) % self.size
            if random.random() < 0.1:
                slot = random.getrandbits(15)
            flags = random.choice((0, 1, 2, 2, 2, 3, 6, 0x8001))
            self.write(driver, struct.pack("<HH", slot | random.randrange(2) << 15, flags))
        else:
            event = (self.model.next_used + random.randrange(-4, 5)) & 0xFFFF
            self.write(driver, struct.pack("<H", random.choice((0, 1, 2, 0xFFFF))))
            self.write(driver + 4 + 2 * self.size, struct.pack("<H", event))

    # The device

    def pop(self, queue: Queue) -> None:
        chain = self.random.choice(self.chains)
        try:
            must = self.model.pop()
        except Wrong as wrong:
            self.found[WRONG[wrong.code]] += 1
            with pytest.raises(RingError) as caught:
                queue.pop(chain)
            assert caught.value.code == wrong.code
            return
        if must is None:
            assert queue.pop(chain) is None
            return
        self.found["none"] += 1
        assert queue.pop(chain) is chain
        assert chain.id == must.id
        if must.id in self.offered:
            self.offered.remove(must.id)
        has = [(each.address, each.length, each.writable) for each in chain]
        readable = [(address, length, False) for address, length in must.readable]
        assert has == readable + [(address, length, True) for address, length in must.writable]
        assert chain.readable == sum(length for _, length in must.readable)
        assert chain.writable == sum(length for _, length in must.writable)
        assert queue.c.in_flight == self.model.in_flight
        self.held.append(must.id)
        self.move(chain, must)

    def move(self, chain: Chain, must: Popped) -> None:
        """Read and write some of the chain's bytes."""
        random = self.random
        if any(address >= VAST for address, _ in must.readable + must.writable):
            return
        offset = random.choice((0, 0, 1, 16, random.randrange(200)))
        size = random.choice((0, 1, 16, random.randrange(300), 1 << 20))
        sent = b"".join(self.image.read(*part) for part in must.readable)
        assert chain.read(size, offset) == sent[offset : offset + size]
        data = random.randbytes(min(size, 4096))
        room = max(0, sum(length for _, length in must.writable) - offset)
        assert chain.write(data, offset) == min(len(data), room)
        at = -offset
        for address, length in must.writable:
            start = max(0, -at)
            part = data[max(0, at) : max(0, at + length)]
            if part:
                self.image.write(address + start, part)
            at += length

    def push(self, queue: Queue) -> None:
        random = self.random
        identity = random.getrandbits(16)
        if self.held and random.random() < 0.95:
            identity = self.held.pop(random.randrange(len(self.held)))
        elif random.random() < 0.7:
            identity %= self.size + 1
        length = random.choice((0, 0, 1, 64, 0xFFFF_FFFF))
        if self.model.push(identity, length):
            queue.push(identity, length)
            if identity in self.held:
                self.held.remove(identity)
        else:
            with pytest.raises(ValueError, match="not with the device"):
                queue.push(identity, length)

    def interrupt(self, queue: Queue) -> None:
        assert queue.should_interrupt() == self.model.should_interrupt()

    def notify(self, queue: Queue) -> None:
        if self.random.random() < 0.5:
            assert queue.enable_notify() == self.model.enable_notify()
        else:
            lib.pyvmm_queue_disable_notify(queue.c)
            self.model.disable_notify()

    def run(self) -> None:
        """Let driver and device do what they do, and go on for a while once the ring is broken."""
        queue = self.queue()
        if queue is None:
            self.check()
            return
        left = STEPS
        device = (self.pop, self.pop, self.push, self.push, self.interrupt, self.notify)
        for _ in range(STEPS):
            for _ in range(self.random.choice((0, 1, 1, 2))):
                self.drive()
            if self.random.random() < 0.3:
                self.suppress()
            self.random.choice(device)(queue)
            self.check()
            left = min(left - 1, 8) if self.model.broken else left - 1
            if not left:
                break


@contextmanager
def world(seed: int) -> Iterator[World]:
    made = World(Random(seed))  # noqa: S311  (nobody's secret)
    try:
        yield made
    finally:
        made.close()


@settings(max_examples=500)
@given(st.integers(0, TWO_TO_64 - 1))
def test_each_ring_is_served_as_the_specification_says(seed: int) -> None:
    with world(seed) as made:
        made.run()


def test_the_rings_are_wrong_in_every_way() -> None:
    found: Counter[str] = Counter()
    for seed in range(300):
        with world(seed) as made:
            made.run()
            found += made.found
    rare = {lib.PYVMM_RING_REQUEST}
    never = [text for code, text in WRONG.items() if code not in rare and not found[text]]
    assert never == []
    assert found["none"] > 500
