"""Hostile drivers: whatever they write, the device at worst stops, and an event tells.

Hypothesis chooses seeds, and each seed makes hundreds of rings: 30,000 in all. What each
of them must do is in test_hostile_rings.py.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.mmio_driver import Echo, MmioDriver
from tests.virtio.ring_driver import (
    AVAIL,
    BASE,
    BUFFERS,
    INDIRECT,
    NEXT,
    SECOND,
    SIZE,
    TABLES,
    USED,
    WRITE,
    Buffer,
    Memory,
    SplitDriver,
)
from vmm._native import lib
from vmm.events import Bounded
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.block.device import Blk
from vmm.virtio.block.raw_image import RawDisk
from vmm.virtio.device import VirtioDevice
from vmm.virtio.queue import WRONG, Areas, MemoryMap, Queue
from vmm.virtio.rng import Rng
from vmm.virtio.transport.mmio import MmioTransport

RINGS = 500
"""Rings a seed makes."""

AREAS = Areas(BASE, BASE + 0x8000, BASE + 0xC000)
SIZES = (1, 2, 4, 8)
FEATURES = (virtio.F_INDIRECT_DESC, virtio.F_EVENT_IDX, virtio.F_RING_PACKED)

ADDRESSES = (
    *(BUFFERS, BUFFERS + 1, TABLES, TABLES + 16, SECOND, SECOND + 0xFFFF, BASE + SIZE - 1),
    *(*AREAS, BASE + SIZE, BASE - 1, 0, SECOND + 0x1_0000, (1 << 64) - 1, (1 << 64) - 16, 1 << 63),
)
LENGTHS = (1, 2, 16, 32, 48, 64, 16, 32, 0, 15, 4096, 1 << 16, 0x7FFF_FFFF, 0xFFFF_FFFF)


class Late(Echo):
    """A device that keeps chains for one round: they may be made available again meanwhile."""

    def __init__(self, memory: Memory, events: Recorded) -> None:
        super().__init__(memory, events)
        self.kept: list[int] = []

    def serve(self, index: int, queue: Queue) -> None:
        while self.kept and len(self.kept) > queue.size // 2:
            queue.push(self.kept.pop(), 1)
        self.kept.extend(chain.id for chain in queue.batch(queue.size))

    def queue_stopped(self, index: int) -> None:
        self.kept.clear()


class Hostile:
    """Make rings that are wrong in every way, and some that are right."""

    def __init__(self, random: Random, memory: Memory, areas: Areas = AREAS) -> None:
        self.random, self.memory, self.areas = random, memory, areas

    def descriptor(self, size: int, packed: int) -> bytes:
        random = self.random
        address = random.choice(ADDRESSES[:7] if random.random() < 0.9 else ADDRESSES)
        length = random.choice(LENGTHS[:8] if random.random() < 0.9 else LENGTHS)
        flags = random.choice((0, 0, WRITE, WRITE, NEXT, NEXT, NEXT | WRITE, INDIRECT))
        if random.random() < 0.02:
            flags = random.getrandbits(16)
        if packed:
            flags |= random.choice((AVAIL, AVAIL, AVAIL, USED, 0, AVAIL | USED))
            return struct.pack("<QIHH", address, length, random.randrange(12), flags)
        following = random.randrange(size + 1)
        return struct.pack("<QIHH", address, length, flags, following)

    def table(self, at: int, size: int, packed: int) -> None:
        entries = [self.descriptor(size, packed) for _ in range(size)]
        self.memory.guest.write(at, b"".join(entries))

    def request(self, size: int, packed: int) -> None:
        """Write what a block device may take for a request: type, sector and a chain."""
        chain = ((BUFFERS, 16, NEXT), (SECOND, 512, NEXT | WRITE), (TABLES, 1, WRITE))
        if size > 2 and self.random.random() < 0.7:
            for index, (address, length, flags) in enumerate(chain):
                more = (index, flags | AVAIL) if packed else (flags, index + 1)
                at = AREAS.descriptors + 16 * index
                self.memory.pack(at, "QIHH", address, length, *more)
            if not packed:
                self.memory.pack(AREAS.driver + 4, f"{size}H", *[0] * size)
        kind = self.random.choice((0, 0, 1, 1, 4, 8, 11, 13, 99))
        sector = self.random.choice((0, 1, 2, 127, 128, (1 << 64) - 1))
        self.memory.pack(BUFFERS, "IIQ", kind, 0, sector)

    def scribble(self, size: int, packed: int) -> None:
        """Fill a ring with garbage."""
        random, memory = self.random, self.memory
        self.table(self.areas.descriptors, size, packed)
        self.table(TABLES, 4, packed)
        if packed:
            memory.pack(self.areas.driver, "HH", random.getrandbits(16), random.randrange(4))
        else:
            (before,) = memory.unpack(self.areas.driver + 2, "H")
            jump = random.choice((1, 1, 1, size, size, size + 1, random.getrandbits(16)))
            heads = [random.randrange(size + (random.random() < 0.1)) for _ in range(size)]
            memory.pack(
                self.areas.driver,
                f"HH{size}HH",
                random.randrange(2),
                before + jump & 0xFFFF,
                *heads,
                random.getrandbits(16),
            )


def seeded(seed: int) -> Random:
    """Return a generator that chooses the same for the same *seed*."""
    return Random(seed)  # noqa: S311  (nobody's secret)


def attack(
    random: Random, device: VirtioDevice, memory: Memory, events: Recorded, rings: int = RINGS
) -> Counter[str]:
    """Let the device serve hostile *rings*; return its complaints and how often each came."""
    hostile = Hostile(random, memory)
    found: Counter[str] = Counter()
    with MmioTransport(device) as transport:
        driver = MmioDriver(transport)
        for _ in range(rings):
            events.seen.clear()
            device._bounded = Bounded(events)
            memory.guest.write(AREAS.driver, bytes(4))
            features = sum(feature for feature in FEATURES if random.random() < 0.6)
            size, packed = random.choice(SIZES), features & virtio.F_RING_PACKED
            hostile.scribble(size, packed)
            driver.start(size, AREAS, features)
            for _ in range(random.randrange(1, 4)):
                driver.notify()
                hostile.scribble(size, packed)
            broken = driver.load("Status") & status.NEEDS_RESET
            assert len(events.seen) == (1 if broken else 0)
            for name, fields in events.seen:
                assert name == "virtio-needs-reset"
                found[str(fields["error"])] += 1
            found["none"] += not broken
    return found


def still_works(memory: Memory) -> None:
    """Check that nothing was damaged: another device over the same memory works."""
    memory.guest.write(BASE, bytes(0x1_0000))
    ring = SplitDriver(memory)
    with MmioTransport(Echo(memory, Recorded())) as transport:
        driver = MmioDriver(transport)
        driver.start(ring.size, ring.areas)
        ring.add(Buffer(BUFFERS, 10), Buffer(SECOND, 10, writable=True))
        driver.notify()
        assert [length for _, length in ring.used()] == [10]


def attack_disk(random: Random, rings: int) -> None:
    """Let a disk serve hostile *rings*, which change while the disk's thread reads them."""
    memory, events = Memory(), Recorded()
    hostile = Hostile(random, memory)
    with TemporaryDirectory() as directory:
        image = Path(directory, "disk.img")
        image.write_bytes(bytes(1 << 16))
        backing = RawDisk(image, read_only=False, option="--disk")
        device = Blk("disk0", MemoryMap(memory.guest), events, backing)
        with MmioTransport(device) as transport:
            driver = MmioDriver(transport)
            for _ in range(rings):
                device._bounded = Bounded(events)
                device.disk.one_by_one = random.random() < 0.5
                memory.guest.write(AREAS.driver, bytes(4))
                features = sum(feature for feature in FEATURES if random.random() < 0.6)
                size, packed = random.choice(SIZES), features & virtio.F_RING_PACKED
                hostile.scribble(size, packed)
                hostile.request(size, packed)
                driver.start(size, AREAS, features)
                for _ in range(random.randrange(6)):
                    driver.store("QueueNotify", 0)
                    time.sleep(random.choice((0, 0, 1e-4)))
                    hostile.scribble(size, packed)
                    hostile.request(size, packed)
                transport.reset()
        assert image.stat().st_size == 1 << 16
    assert set(events.names()) <= {"virtio-needs-reset"}
    still_works(memory)
    memory.close()


@pytest.mark.parametrize("kind", ["at once", "late"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_no_ring_hurts_a_device_that_copies(kind: str, seed: int) -> None:
    memory, events = Memory(), Recorded()
    attack(seeded(seed), (Late if kind == "late" else Echo)(memory, events), memory, events)
    still_works(memory)
    memory.close()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_no_ring_hurts_the_entropy_device(seed: int) -> None:
    memory, events = Memory(), Recorded()
    attack(seeded(seed), Rng("rng", MemoryMap(memory.guest), events), memory, events)
    still_works(memory)
    memory.close()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_no_ring_hurts_a_disk_though_it_changes_while_it_is_served(seed: int) -> None:
    """By io_uring, and one request after the other."""
    attack_disk(seeded(seed), RINGS // 5)


def test_the_rings_are_wrong_in_every_way(memory: Memory, events: Recorded) -> None:
    """Errors that these rings cannot cause have tests of their own: sizes, addresses, lengths."""
    found: Counter[str] = Counter()
    for seed in range(4):
        found += attack(seeded(seed), Late(memory, events), memory, events)
    rare = {lib.PYVMM_RING_SIZE, lib.PYVMM_RING_ALIGNMENT, lib.PYVMM_RING_SEGMENTS}
    rare.add(lib.PYVMM_RING_REQUEST)
    expected = {text for code, text in WRONG.items() if code not in rare} | {"none"}
    assert set(found) == expected


@settings(max_examples=300, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.sampled_from([*range(0, 0x108, 4), 0x70, 0x70, 0x70, 0x44, 0x50, 0x30, 0x1F8]),
            st.sampled_from([4, 4, 4, 1, 2, 8]),
            st.sampled_from([0, 1, 2, 3, 7, 8, 11, 15, 64, 128, 0xFFFF_FFFF]) | st.integers(0, 255),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_no_order_of_accesses_hurts_the_transport(
    accesses: list[tuple[int, int, int, bool]],
) -> None:
    memory, events = Memory(), Recorded()
    with MmioTransport(Echo(memory, events)) as transport:
        driver = MmioDriver(transport)
        for offset, size, value, store in accesses:
            if store:
                transport.write(offset, size, value & ((1 << 8 * size) - 1))
                driver.turn()
            assert 0 <= transport.read(offset, size) < 1 << 8 * size
    memory.close()


@pytest.mark.parametrize("complaint", WRONG.values())
def test_each_complaint_is_one_short_clause(complaint: str) -> None:
    assert len(complaint) < 80
    assert complaint[0].islower()
    assert not complaint.endswith(".")
