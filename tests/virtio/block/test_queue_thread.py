"""Many requests of a disk at once: batches, requests in flight, and stops while there are some."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import (
    DATA,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    WRITE_ZEROES,
    Disk,
    wait,
)
from tests.virtio.ring_driver import BASE, INDIRECT, KINDS, SECOND, SIZE, Buffer, SplitDriver
from vmm._native import lib
from vmm.errors import UserError
from vmm.events import COMPLAINTS
from vmm.virtio import status
from vmm.virtio.block import registers as blk
from vmm.virtio.block.device import Blk
from vmm.virtio.block.raw_image import CacheMode, RawDisk
from vmm.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC
from vmm.virtio.queue import Format

io_uring = pytest.mark.parametrize("way", ["io_uring"], indirect=True)


def device(disk: Disk) -> Blk:
    found = disk.transport.device
    assert isinstance(found, Blk)
    return found


def under_way(disk: Disk) -> int:
    queue = device(disk).slots[0].queue
    assert queue
    return int(queue.c.in_flight)


@pytest.fixture
def disk(make: Callable[..., Disk]) -> Disk:
    disk = make(serial="PYVMM-0001")
    disk.start()
    return disk


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_requests_go_through_io_uring_unless_told_otherwise(disk: Disk, way: str) -> None:
    (worker,) = device(disk)._workers.values()
    disk.read(0, 512)
    assert worker.c.uses_uring == (way != "one by one")


def test_a_batch_takes_one_interrupt(make: Callable[..., Disk]) -> None:
    """All that the device finds available is used before the driver is interrupted (2.7.10)."""
    disk = make()
    for features in (0, F_EVENT_IDX):
        disk.start(features=blk.F_FLUSH | features)
        disk.ring.form = Format(event_idx=bool(features), indirect=True)
        for slot in range(8):
            buffer = Buffer(DATA + 512 * slot, 512, writable=True)
            disk.add(IN, slot, buffer, slot=slot)
        disk.driver.interrupts()
        disk.notify()
        assert len(disk.used(8)) == 8
        for slot in range(8):
            assert disk.status(slot) == OK
            assert disk.memory.guest.read(DATA + 512 * slot, 512) == bytes([slot]) * 512
        disk.transport.reset()  # so that its thread raises no more
        assert disk.driver.interrupts() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_more_requests_than_can_be_under_way_are_all_done(
    make: Callable[..., Disk], kind: str
) -> None:
    """The guest makes new requests available as fast as it can while old ones complete."""
    disk = make()
    disk.start(kind)
    todo = list(range(4 * lib.PYVMM_BLK_DEPTH))
    free = list(range(8))
    owner: dict[int, int] = {}

    def turn() -> bool:
        for identity, length in disk.ring.used():
            slot = owner.pop(identity)
            assert length == 513
            assert disk.status(slot) == OK
            free.append(slot)
        while todo and free:
            slot = free.pop(0)
            data = Buffer(DATA + 512 * slot, 512, writable=True)
            owner[disk.add(IN, todo.pop(0) % SECTORS, data, slot=slot)] = slot
            disk.notify()
        return not todo and not owner

    wait(turn)


@io_uring
def test_what_waits_holds_up_nothing_else(disk: Disk, pipe: tuple[int, int]) -> None:
    """Requests are used in the order in which they complete (2.7.8)."""
    device(disk).disk.fd = pipe[0]  # reading it waits until there is something
    slow = disk.add(IN, 0, Buffer(DATA, 512, writable=True), slot=0)
    disk.notify()
    quick = disk.add(GET_ID, 0, Buffer(DATA + 512, 20, writable=True), slot=1)
    disk.notify()
    assert disk.used(1) == [quick]
    assert disk.memory.guest.read(DATA + 512, 10) == b"PYVMM-0001"
    os.write(pipe[1], b"x" * 100)  # and what is read in parts becomes whole
    os.write(pipe[1], b"y" * 412)
    assert disk.used(1) == [slow]
    assert disk.status(0) == OK
    assert disk.memory.guest.read(DATA, 512) == b"x" * 100 + b"y" * 412


@io_uring
@pytest.mark.parametrize("bad", [False, True])
def test_nothing_touches_guest_memory_after_a_reset(
    disk: Disk, pipe: tuple[int, int], events: Recorded, *, bad: bool
) -> None:
    """A reset waits for requests in flight, also if the ring went bad meanwhile."""
    device(disk).disk.fd = pipe[0]
    for slot in range(3):
        disk.add(IN, 0, Buffer(DATA + 512 * slot, 512, writable=True), slot=slot)
    disk.notify()
    wait(lambda: under_way(disk) == 3)
    if bad:
        disk.ring.add(Buffer(0, 16))
        disk.notify()
    resetting = Thread(target=disk.transport.reset)
    resetting.start()
    resetting.join(0.2)
    assert resetting.is_alive(), "a reset that did not wait"
    os.write(pipe[1], b"x" * 1536)
    resetting.join(10)
    assert not resetting.is_alive()
    assert disk.memory.guest.read(DATA, 1536) == b"x" * 1536
    assert set(events.names()) <= ({"virtio-needs-reset"} if bad else set())
    assert device(disk)._workers == {}


def test_a_disk_with_requests_under_way_can_be_reset_at_any_time(disk: Disk) -> None:
    for turn in range(100):
        for slot in range(8):
            kind = (IN, OUT, FLUSH)[(slot + turn) % 3]
            data = [Buffer(DATA + 512 * slot, 512, writable=kind == IN)] * (kind != FLUSH)
            disk.add(kind, slot, *data, slot=slot)
            disk.notify()
        disk.transport.reset()
        before = disk.memory.guest.read(BASE, 1 << 18)
        disk.notify()
        assert disk.memory.guest.read(BASE, 1 << 18) == before
        disk.start()


def test_four_queues_lose_nothing(make: Callable[..., Disk]) -> None:
    disk = make(queues=4)
    driver, memory = disk.driver, disk.memory
    rings = [SplitDriver(memory, at=BASE + 0x1_0000 * index) for index in (0, 1, 8, 9)]
    driver.negotiate(blk.F_MQ | blk.F_FLUSH)
    for index, ring in enumerate(rings):
        driver.set_queue(index, ring.size, ring.areas)
    driver.add_status(status.DRIVER_OK)
    left = [200] * 4
    busy = [0] * 4
    header = DATA + 0x2000
    for index in range(4):
        memory.pack(header + 16 * index, "IIQ", IN, 0, index)

    def turn() -> bool:
        for index, ring in enumerate(rings):
            busy[index] -= len(ring.used())
            while left[index] and busy[index] < 4:
                place = DATA + 0x400 * index
                ring.add(Buffer(header + 16 * index, 16), Buffer(place, 513, writable=True))
                left[index] -= 1
                busy[index] += 1
                driver.store("QueueNotify", index)
        return not any(left) and not any(busy)

    wait(turn)
    for index in range(4):
        assert memory.guest.read(DATA + 0x400 * index, 513) == bytes([index]) * 512 + b"\0"


# --- caches between a disk and its medium -------------------------------------------------------


def test_each_cache_mode_keeps_what_it_promises(make: Callable[..., Disk], way: str) -> None:
    if way == "direct":
        return  # all of these go with it or without
    for cache, offers, through in (
        (CacheMode(), True, False),
        (CacheMode(write_through=True), False, True),
        (CacheMode(unsafe=True), True, False),
    ):
        disk = make(cache=cache)
        assert bool(disk.driver.offered() & blk.F_FLUSH) == offers
        disk.start(features=blk.F_FLUSH if offers else 0)
        assert device(disk).disk.write_through == through
        data = os.urandom(512)
        assert disk.write(3, data) == OK
        assert disk.path.read_bytes()[3 * 512 : 4 * 512] == data
        disk.transport.close()


@pytest.mark.parametrize("way", ["direct"], indirect=True)
def test_direct_input_and_output_take_any_alignment(disk: Disk) -> None:
    """What O_DIRECT does not take goes through the page cache, and both agree."""
    cdata = device(disk).disk
    assert cdata.direct_fd >= 0
    assert cdata.direct_offset in (512, 4096)
    whole, odd = os.urandom(4096), os.urandom(512)
    disk.memory.guest.write(SECOND, whole)
    assert disk.request(OUT, 8, Buffer(SECOND, 4096)) == OK
    disk.memory.guest.write(DATA + 1, odd)
    assert disk.request(OUT, 9, Buffer(DATA + 1, 512)) == OK
    expected = whole[:512] + odd + whole[1024:]
    assert disk.request(IN, 8, Buffer(SECOND, 4096, writable=True)) == OK
    assert disk.memory.guest.read(SECOND, 4096) == expected
    assert disk.read(9, 512) == odd
    assert disk.path.read_bytes()[8 * 512 : 16 * 512] == expected


@pytest.mark.parametrize("way", ["direct"], indirect=True)
def test_a_file_that_is_pickier_than_it_says_is_read_all_the_same(disk: Disk) -> None:
    device(disk).disk.direct_memory = device(disk).disk.direct_offset = 1
    data = Buffer(DATA + 1, 512, writable=True)
    assert disk.request(IN, 3, data) == OK
    assert disk.memory.guest.read(DATA + 1, 512) == b"\3" * 512


def test_a_file_system_without_direct_input_and_output_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    real = os.open

    def refuse(name: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="past the page cache") as caught:
        RawDisk(path, read_only=False, option=f"--disk {path}", cache=CacheMode(direct=True))
    assert "cache=none" in str(caught.value.hint)


def test_an_unsafe_disk_is_not_synced(make: Callable[..., Disk], pipe: tuple[int, int]) -> None:
    disk = make(cache=CacheMode(unsafe=True))
    disk.start()
    device(disk).disk.fd = pipe[0]  # which cannot be synced
    assert disk.request(FLUSH, 0) == OK


@io_uring
def test_writes_without_end_keep_no_flush_from_its_end(
    make: Callable[..., Disk], path: Path
) -> None:
    """Writes to the page cache are done at once, without a system call that takes completions."""
    size = 1 << 19
    os.truncate(path, 2 * size)
    disk = make()
    ring = disk.ring = SplitDriver(disk.memory, 256)
    disk.driver.start(ring.size, ring.areas, blk.F_FLUSH | F_INDIRECT_DESC)
    flush = disk.add(FLUSH, 0)
    disk.memory.pack(DATA, "IIQ", OUT, 0, 0)
    data = Buffer(BASE + SIZE - size, size)
    table = ring.table(Buffer(DATA, 16), data, Buffer(DATA + 16, 1, writable=True))
    for head in range(1, ring.size):
        ring.describe(ring.areas.descriptors, head, table, INDIRECT)
        ring.offer(head)
    disk.notify()
    writes = 0
    while writes < 20 * ring.size:
        (index,) = disk.memory.unpack(ring.areas.device + 2, "H")
        while ring.seen != index:
            place = ring.areas.device + 4 + 8 * (ring.seen % ring.size)
            (head,) = disk.memory.unpack(place, "I")
            if head == flush:
                return
            ring.offer(head)
            ring.seen = (ring.seen + 1) & 0xFFFF
            writes += 1
    pytest.fail(f"{writes} writes later it is not done")


@io_uring
def test_a_sync_that_fails_is_an_io_error(disk: Disk, pipe: tuple[int, int]) -> None:
    device(disk).disk.fd = pipe[0]  # which cannot be synced
    assert disk.request(FLUSH, 0) == IOERR


def zeroing(disk: Disk, size: int) -> int:
    """Have all *size* bytes of a new, empty file zeroed; return it once that has begun."""
    fd = os.memfd_create("disk")
    os.truncate(fd, size)
    device(disk).disk.fd = fd
    device(disk).disk.sectors = size // 512
    disk.memory.pack(DATA, "QII", 0, size // 512, 0)
    disk.add(WRITE_ZEROES, 0, Buffer(DATA, 16))
    disk.notify()
    wait(lambda: os.fstat(fd).st_blocks)
    return fd


def test_zeroes_that_take_long_are_no_wait_for_a_reset(
    make: Callable[..., Disk], events: Recorded
) -> None:
    """A file system without FALLOC_FL_ZERO_RANGE, like tmpfs, has them written as data."""
    size = 64 << 20
    stopped_early = False
    for _ in range(20):
        disk = make()
        disk.start()
        fd = zeroing(disk, size)
        disk.transport.reset()
        stopped_early = os.fstat(fd).st_blocks < size // 512
        os.close(fd)
        if stopped_early:
            assert disk.status() == IOERR
            break
    assert stopped_early
    assert events.names() == [], "the host did not fail"


def test_zeroes_that_take_long_are_done_to_their_end_before_a_pause(
    make: Callable[..., Disk],
) -> None:
    """As above; but somebody waits for these."""
    size = 64 << 20
    disk = make()
    for _ in range(5):
        disk.start()
        fd = zeroing(disk, size)
        disk.transport.device.pause()
        assert len(list(disk.ring.used())) == 1
        assert disk.status() == OK
        assert os.fstat(fd).st_blocks == size // 512
        disk.transport.device.resume()
        disk.transport.reset()
        os.close(fd)


SEGMENTS = 250
SEGMENT = 512 << 10


def transferring(disk: Disk, kind: int) -> int:
    """Have a file of 125 MiB written or read, in one request; return it once that has begun."""
    fd = os.memfd_create("disk")
    os.truncate(fd, SEGMENTS * SEGMENT)
    device(disk).disk.fd = fd
    device(disk).disk.direct_fd = -1
    device(disk).disk.sectors = SEGMENTS * SEGMENT // 512
    data = Buffer(DATA, SEGMENT, writable=kind == IN)
    disk.memory.guest.write(DATA, b"\xee" * 4096)
    disk.add(kind, 0, *[data] * SEGMENTS)
    disk.notify()
    wait(
        lambda: os.fstat(fd).st_blocks if kind == OUT else disk.memory.guest.read(DATA, 1) == b"\0"
    )
    return fd


@pytest.mark.parametrize("kind", [OUT, IN])
def test_a_transfer_that_takes_long_is_no_wait_for_a_reset(
    make: Callable[..., Disk], events: Recorded, kind: int
) -> None:
    """A request may have as many bytes as segments of its chain hold."""
    disk = make()
    for _ in range(20):
        disk.start()
        fd = transferring(disk, kind)
        disk.transport.reset()
        os.close(fd)
        if disk.status() == IOERR:
            break
    assert disk.status() == IOERR
    assert events.names() == [], "the host did not fail"


def test_a_transfer_that_takes_long_is_done_to_its_end_before_a_pause(
    make: Callable[..., Disk],
) -> None:
    """As above; but somebody waits for it."""
    disk = make()
    for kind in (OUT, IN):
        disk.start()
        fd = transferring(disk, kind)
        disk.transport.device.pause()
        assert len(list(disk.ring.used())) == 1
        assert disk.status() == OK
        if kind == OUT:
            assert os.fstat(fd).st_blocks == SEGMENTS * SEGMENT // 512
        disk.transport.device.resume()
        disk.transport.reset()
        os.close(fd)


# --- failures of the host -----------------------------------------------------------------------


def test_what_the_host_cannot_do_is_an_event(disk: Disk, events: Recorded, way: str) -> None:
    os.truncate(disk.path, 512)
    assert disk.request(IN, 4, Buffer(DATA, 512, writable=True)) == IOERR
    ((fd, tell),) = device(disk).readers()
    assert select.select([fd], [], [], 10)[0]
    tell()
    ((name, fields),) = events.seen
    assert name == "disk-error"
    assert fields == {
        "device": "disk0",
        "queue": 0,
        "operation": "read",
        "offset": 2048,
        "error": "No data available",
    }
    assert not select.select([fd], [], [], 0)[0]


def test_the_loop_does_not_wait_for_whoever_resets_the_disk(disk: Disk, events: Recorded) -> None:
    """A reset holds the device's lock until the requests under way are done."""
    os.truncate(disk.path, 512)
    assert disk.request(IN, 4, Buffer(DATA, 512, writable=True)) == IOERR
    with device(disk)._lock:
        loop = Thread(target=device(disk).tell_failures)
        loop.start()
        loop.join(10)
        assert not loop.is_alive()
    assert events.names() == ["disk-error"]


def test_a_range_that_cannot_be_cleared_is_an_event(disk: Disk, events: Recorded) -> None:
    with disk.path.open("rb") as file:
        device(disk).disk.fd = file.fileno()
        device(disk).disk.sectors = 1 << 20
        assert disk.ranges(WRITE_ZEROES, (1, (64 << 20) // 512, 0)) == IOERR
        device(disk).tell_failures()
    ((name, fields),) = events.seen
    assert name == "disk-error"
    assert (fields["operation"], fields["offset"]) == ("write-zeroes", 512)


def test_what_fails_as_a_disk_is_reset_is_an_event_all_the_same(
    disk: Disk, events: Recorded
) -> None:
    os.truncate(disk.path, 512)
    assert disk.request(IN, 4, Buffer(DATA, 512, writable=True)) == IOERR
    disk.transport.reset()
    assert events.names() == ["disk-error"]


def test_what_fails_as_a_ring_goes_bad_is_an_event_all_the_same(
    disk: Disk, events: Recorded
) -> None:
    os.truncate(disk.path, 512)
    assert disk.request(IN, 4, Buffer(DATA, 512, writable=True)) == IOERR
    disk.ring.add(Buffer(0, 16))
    disk.notify()
    wait(lambda: len(events.seen) == 2)
    assert events.names() == ["disk-error", "virtio-needs-reset"]


def test_failures_do_not_fill_the_hosts_disk(disk: Disk, events: Recorded) -> None:
    os.truncate(disk.path, 512)
    for _ in range(COMPLAINTS + 10):
        assert disk.request(IN, 4, Buffer(DATA, 512, writable=True)) == IOERR
        device(disk).tell_failures()
    assert events.names() == ["disk-error"] * COMPLAINTS


def test_a_drivers_own_mistakes_are_no_failures(disk: Disk, events: Recorded) -> None:
    assert disk.request(IN, SECTORS, Buffer(DATA, 512, writable=True)) == IOERR
    disk.transport.reset()
    assert events.names() == []
