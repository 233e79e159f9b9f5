"""What a driver can change at any time is fetched once, and what it may see is written in order.

Memory is spoiled as soon as it was read: whoever reads it again, after it was checked, sees that.
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.accesses import SUPPORTED, Access, Watcher
from tests.virtio.block.blk_driver import DATA, GET_ID, HEADER, OUT, STATUS, Disk
from tests.virtio.guarded import Guarded
from tests.virtio.net.net_driver import DATA as PACKET
from tests.virtio.net.net_driver import TRANSMIT, Wired, wait
from tests.virtio.ring_driver import BASE, KINDS, Buffer, Memory, PackedDriver, SplitDriver
from tests.virtio.ring_model import Image, Model, Popped
from vmm._native import ffi, lib
from vmm.memory import GuestMemory
from vmm.virtio.block.device import Blk
from vmm.virtio.block.image_format import MAGIC
from vmm.virtio.queue import Chain, Format, MemoryMap, Queue

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="no single steps within a program here")

RINGS, TABLES = 0x4000, 0x1000
SIZE = 8


@pytest.fixture(scope="session")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    return Watcher(tmp_path_factory.mktemp("accesses"))


class Small(Memory):
    """Guest memory of one region: tables and descriptors, then the other areas, then buffers."""

    def __init__(self) -> None:
        self.only = Guarded(0x1_0000)
        self.mappings = [self.only]
        self.guest = GuestMemory([self.only.region(BASE)])


def ring(memory: Memory, kind: str) -> SplitDriver | PackedDriver:
    made = KINDS[kind](memory, SIZE, at=BASE)
    made.areas = made.areas._replace(driver=BASE + RINGS, device=BASE + RINGS + 0x100)

    def table(*buffers: Buffer) -> Buffer:
        at = BASE + TABLES + 0x100 * (made.tables % 16)
        made.tables += 1
        for index, buffer in enumerate(buffers):
            if isinstance(made, PackedDriver):
                made.describe(at, index, buffer, 0, 0)
            else:
                made.describe(at, index, buffer, int(index + 1 < len(buffers)), index + 1)
        return Buffer(at, 16 * len(buffers))

    made.table = table  # type: ignore[method-assign]
    return made


def chain(random: Random) -> list[Buffer]:
    count = random.randint(1, 3)
    readable = random.randrange(count + 1)
    places = (BASE + 0x8000, BASE + 0x9001, BASE + 0xFFF0)
    return [
        Buffer(random.choice(places), random.choice((1, 7, 16)), at >= readable)
        for at in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_what_a_pop_has_read_it_does_not_read_again(watcher: Watcher, kind: str, seed: int) -> None:
    random = Random(seed)  # noqa: S311
    memory = Small()
    driver = ring(memory, kind)
    form = Format(packed=kind == "packed", indirect=True)
    image = Image([(BASE, 0x1_0000)])
    model = Model(image, SIZE, driver.areas, form, capacity=20)
    queue = Queue(MemoryMap(memory.guest), SIZE, driver.areas, form)
    popped = Chain(20)
    for _ in range(6):
        driver.add(*chain(random), indirect=random.random() < 0.5)
        before = memory.guest.read(BASE, 0x1_0000)
        image.write(BASE, before)
        must = model.pop()
        assert must is not None
        with watcher.watching(memory.only, descriptors=RINGS, end=0x8000) as found:
            result = lib.pyvmm_queue_pop(queue.c, popped.c)
        assert not any(access.writes for access in found)
        fetches = [access.offset for access in found][kind == "packed" :]  # flags say there is one
        fetched = Counter(at // 16 if at < RINGS else at for at in fetches)
        assert set(fetched.values()) == {1}
        memory.guest.write(BASE, before)  # as if nobody had spoiled it
        assert result == 1
        check(popped, must)
        assert queue.c.taken[must.id]
        model.push(must.id, 3)
        queue.push(must.id, 3)
        driver.used()
    memory.close()


def check(popped: Chain, must: Popped) -> None:
    assert popped.id == must.id
    has = [(each.address, each.length) for each in popped]
    assert has == must.readable + must.writable


@pytest.mark.parametrize("kind", KINDS)
def test_the_driver_sees_a_used_chain_last(watcher: Watcher, kind: str) -> None:
    memory = Small()
    driver = ring(memory, kind)
    form = Format(packed=kind == "packed", indirect=True)
    queue = Queue(MemoryMap(memory.guest), SIZE, driver.areas, form)
    for _ in range(3):
        driver.add(Buffer(BASE + 0x8000, 16, writable=True))
        popped = queue.pop()
        assert popped is not None
        before = queue.c.next_used
        with watcher.watching(memory.only) as found:
            lib.pyvmm_queue_push(queue.c, popped.id, 16)
        device = driver.areas.device - BASE
        shows = 16 * before + 14 if kind == "packed" else device + 2
        assert [access.offset for access in found].index(shows) == len(found) - 1 >= 2
    memory.close()


def device(disk: Disk) -> Blk:
    found = disk.transport.device
    assert isinstance(found, Blk)
    return found


@pytest.fixture
def one_by_one(make: Callable[..., Disk], memory: Memory) -> Disk:
    disk = make()
    disk.start("split")
    return disk


def header_reads(watcher: Watcher) -> list[Access]:
    """Return the accesses of one read of a header, from memory that no thread serves."""
    mapping, one = Guarded(0x1_0000), Chain(2)
    one.c.readable, one._segments[0].iov_len = 1, 16
    one._segments[0].iov_base = ffi.cast("void *", mapping.address)
    into = ffi.new("uint8_t[]", 16)
    with watcher.watching(mapping) as found:
        lib.pyvmm_chain_read(one.c, 0, into, 16)
    mapping.close()
    return found


@pytest.mark.parametrize("way", ["one by one"], indirect=True)
def test_a_disks_status_comes_before_it_is_used_and_its_header_is_read_once(
    watcher: Watcher, one_by_one: Disk, memory: Memory
) -> None:
    disk = one_by_one
    region = memory.mappings[0]
    assert isinstance(region, Guarded)
    once = len(header_reads(watcher))
    disk.add(OUT, 1)  # of no data
    done = disk.transport.device.interrupts
    assert done is not None
    with watcher.watching(region) as found:
        disk.notify()
        wait_for_interrupt(disk)
    assert disk.used(1)
    header = [access for access in found if 0 <= access.offset - (HEADER - BASE) < 16]
    assert len(header) == once > 0
    writes = [access.offset for access in found if access.writes]
    status, index = STATUS - BASE, disk.ring.areas.device - BASE + 2
    assert writes.index(status) < writes.index(index)


@pytest.mark.parametrize("way", ["one by one"], indirect=True)
def test_what_a_disk_begins_with_is_looked_at_in_a_copy(
    watcher: Watcher, make: Callable[..., Disk], memory: Memory, path: Path
) -> None:
    """A guest that changes the first sector at once gets none in that was refused."""
    disk = make(guessed=True)
    disk.start("split")
    region = memory.mappings[0]
    assert isinstance(region, Guarded)
    for magic in MAGIC:
        memory.guest.write(DATA, magic.ljust(512, b"x"))
        disk.add(OUT, 0, Buffer(DATA, 512))
        place = DATA - BASE
        with watcher.watching(region, first=place, descriptors=place + 512, end=place + 512):
            disk.notify()
            wait_for_interrupt(disk)
        assert disk.used(1)
        disk.driver.interrupts()
        assert not path.read_bytes().startswith(magic)


def wait_for_interrupt(disk: Disk) -> None:
    """Wait for an interrupt without a look at guest memory; the thread then sleeps."""
    assert select.select([disk.transport.interrupt.fileno()], [], [], 10)[0]


@pytest.mark.parametrize("way", ["one by one"], indirect=True)
def test_a_request_that_comes_as_notifications_are_enabled_is_done(
    watcher: Watcher, one_by_one: Disk, memory: Memory
) -> None:
    """The driver sees that none is wanted, so it sends none; the disk has to look once more."""
    disk = one_by_one
    (worker,) = device(disk)._workers.values()
    region = memory.mappings[0]
    assert isinstance(region, Guarded)
    disk.add(GET_ID, 0, slot=0)
    disk.add(GET_ID, 0, slot=1)
    avail, flags = disk.ring.areas.driver + 2, disk.ring.areas.device
    memory.pack(avail, "H", 1)
    with watcher.watching(region):
        watcher.write_before(flags - BASE, 2, avail - BASE, 2)  # the first write disables
        disk.notify()
        assert wait(lambda: worker.c.requests == 2, 2)
    assert len(disk.used(2)) == 2


def test_a_packet_that_comes_as_notifications_are_enabled_is_sent(
    watcher: Watcher, memory: Memory, events: Recorded
) -> None:
    wired = Wired(memory, events, stream=True)
    wired.start("split")
    wired.tx.add(Buffer(PACKET, 20))
    wired.tx.add(Buffer(PACKET, 30))
    region = memory.mappings[0]
    assert isinstance(region, Guarded)
    avail, flags = wired.tx.areas.driver + 2, wired.tx.areas.device
    memory.pack(avail, "H", 1)
    with watcher.watching(region):
        watcher.write_before(flags - BASE, 2, avail - BASE, 2)
        wired.driver.store("QueueNotify", TRANSMIT)
        assert wait(lambda: wired.backend._threads[TRANSMIT].c.packets == 2, 2)
    wired.close()


def test_a_packet_in_many_buffers_shows_at_once(
    watcher: Watcher, memory: Memory, events: Recorded
) -> None:
    """The driver looks at a packed ring's slots in order: the first one's flags come last."""
    wired = Wired(memory, events, stream=True)
    wired.start("packed")
    wired.offer(*[64] * 4)
    assert not wait(lambda: bool(wired.rx.used()), 0.05), "the thread waits for a frame"
    region = memory.mappings[0]
    assert isinstance(region, Guarded)
    with watcher.watching(region) as found:
        wired.put(bytes(200))
        assert wait(lambda: wired.backend._threads[0].c.packets == 1)
        time.sleep(0.05)
    flags = [
        access.offset for access in found if access.writes and access.offset in range(14, 78, 16)
    ]
    assert flags == [16 + 14, 32 + 14, 48 + 14, 14]
    wired.close()
