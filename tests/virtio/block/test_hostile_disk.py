"""Hostile requests of a disk against a model: the file, and each byte of guest memory.

Requests are cut into buffers anywhere, name any sector, and have any length. What they must not
change is compared as well as what they must.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    Disk,
    wait,
)
from tests.virtio.ring_driver import (
    BASE,
    BUFFERS,
    INDIRECT,
    NEXT,
    SECOND,
    SIZE,
    TABLES,
    Buffer,
    Memory,
    SplitDriver,
    gather,
)
from vmm._native import lib
from vmm.events import Bounded
from vmm.virtio import status
from vmm.virtio.block.device import Blk
from vmm.virtio.block.raw_image import CacheMode, RawDisk
from vmm.virtio.block.registers import F_FLUSH
from vmm.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

SECTORS, SECTOR = 64, 512
SERIAL = b"0123456789abcdefghij"
ONE = (1 << 64) - 1
KINDS = (
    IN,
    IN,
    IN,
    OUT,
    OUT,
    OUT,
    FLUSH,
    GET_ID,
    DISCARD,
    WRITE_ZEROES,
    WRITE_ZEROES,
    2,
    99,
    1 << 31,
)
PLACES = (BUFFERS, BUFFERS + 0x1_0001, BASE + SIZE - 0x1_0000, SECOND + 0x8000)
"""Where a request's buffers are, one after the other: each has 60 KiB to itself at least."""
ENDS = (BASE + SIZE, SECOND + 0x1_0000)
"""Where buffers end, now and then: behind it is a guard page."""
WAYS = ("io_uring", "one by one", "direct", "read only")


class Request:
    """A request, and what a device must do with it."""

    def __init__(self, random: Random, disk: Hostile) -> None:
        self.kind = random.choice(KINDS)
        self.sector = random.choice(
            (0, 1, 5, SECTORS - 1, SECTORS, SECTORS + 1, ONE, 1 << 55, random.randrange(SECTORS))
        )
        header = struct.pack("<IIQ", self.kind, 0, self.sector)
        self.sent = header + self._data(random)
        if random.random() < 0.02:
            self.sent = self.sent[: random.randrange(1, 16)]
        self.room = 1 + self._room(random)
        at = random.choice(PLACES)
        readable, at = self._cut(random, at, len(self.sent))
        writable, end = self._cut(random, at + random.randrange(3), self.room)
        if random.random() < 0.2:  # up to a guard page
            last = random.choice(ENDS)
            writable = [each._replace(address=each.address + last - end) for each in writable]
        self.readable = readable
        self.writable = [each._replace(writable=True) for each in writable]
        if random.random() < 0.01:
            self.writable = []
        disk.scatter(self.readable, self.sent)
        disk.scatter(self.writable, random.randbytes(self.room))

    def _data(self, random: Random) -> bytes:
        if self.kind == OUT:
            length = random.choice((0, SECTOR, 2 * SECTOR, 5 * SECTOR, SECTOR - 1, SECTOR + 16))
            return random.randbytes(length)
        if self.kind in (DISCARD, WRITE_ZEROES):
            most = int(lib.PYVMM_BLK_MAX_RANGES)
            count = random.choice((0, 1, 1, 1, 2, 3, most, most + 1, 2 * most))
            data = b"".join(
                struct.pack(
                    "<QII",
                    random.choice((0, 1, 7, SECTORS - 1, SECTORS, ONE, random.randrange(SECTORS))),
                    random.choice((0, 1, 1, 2, 3, SECTORS, SECTORS + 1, 0xFFFF_FFFF)),
                    random.choice((0, 0, 0, 0, UNMAP, UNMAP, 2, 1 << 31)),
                )
                for _ in range(count)
            )
            return data + bytes(random.choice((0, 0, 0, 1, 8)))
        return random.randbytes(random.choice((0, 0, 16)))

    def _room(self, random: Random) -> int:
        """Return bytes to write before the status."""
        if self.kind == IN:
            return random.choice(
                (0, SECTOR, SECTOR, 2 * SECTOR, 4 * SECTOR, SECTOR - 1, SECTOR + 1)
            )
        return random.choice((0, 0, 1, 20, 40))

    @staticmethod
    def _cut(random: Random, at: int, size: int) -> tuple[list[Buffer], int]:
        """Cut *size* bytes from *at* on into buffers; return them and where the last ends."""
        found: list[Buffer] = []
        while size:
            part = size
            if random.random() < 0.6 and len(found) < 8:
                part = random.choice((1, 4, 15, 16, 17, SECTOR, 600, 1024))
            part = min(part, size)
            found.append(Buffer(at, part))
            at, size = at + part, size - part
            if size:
                at += random.choice((0, 0, 1, 100))
        return found, at

    @property
    def makes_sense(self) -> bool:
        """Whether it has a header and a status."""
        return len(self.sent) >= 16 and bool(self.writable)


class Hostile:
    """A disk, its file and guest memory as they have to be, and a driver."""

    def __init__(self, random: Random, path: Path, way: str) -> None:
        self.random, self.path = random, path
        self.file = bytearray(random.randbytes(SECTORS * SECTOR))
        path.write_bytes(self.file)
        self.read_only = way == "read only"
        self.memory, self.events = Memory(), Recorded()
        cache = CacheMode(direct=way == "direct")
        backing = RawDisk(path, read_only=self.read_only, option="--disk", cache=cache)
        known = MemoryMap(self.memory.guest)
        self.device = Blk("disk0", known, self.events, backing, serial=SERIAL.decode())
        self.device.disk.one_by_one = way == "one by one"
        self.transport = MmioTransport(self.device)
        self.disk = Disk(self.transport, self.memory, path)
        self.ring = SplitDriver(self.memory)
        self.requests = self.errors = 0
        self.start()

    def start(self) -> None:
        self.events.seen.clear()
        self.device._bounded = Bounded(self.events)
        self.requests = self.errors = 0
        features = self.random.choice((0, F_EVENT_IDX)) | F_INDIRECT_DESC | F_FLUSH
        self.memory.guest.write(BASE, bytes(0x1_0000))
        self.ring = SplitDriver(self.memory)
        self.disk.driver.start(self.ring.size, self.ring.areas, features)
        self.expect = [bytearray(mapping.view) for mapping in self.memory.mappings]

    def scatter(self, buffers: list[Buffer], data: bytes) -> None:
        for each in buffers:
            self.memory.guest.write(each.address, data[: each.length])
            data = data[each.length :]

    def must_write(self, buffers: list[Buffer], data: bytes) -> None:
        """Note that the device writes *data* to the first bytes of these buffers."""
        for each in buffers:
            part, data = data[: each.length], data[each.length :]
            which, base = (0, BASE) if each.address < SECOND else (1, SECOND)
            self.expect[which][each.address - base : each.address - base + len(part)] = part

    def outside(self, sector: int, count: int) -> bool:
        return sector + count > SECTORS

    def result(self, request: Request) -> tuple[int, bytes]:
        """Do the request to the model's file; return the status and what the device writes."""
        room, data = request.room - 1, request.sent[16:]
        found, content = UNSUPP, b""
        if request.kind in (IN, OUT):
            found, content = self.transferred(request.kind, request.sector, room, data)
        elif request.kind in (FLUSH, GET_ID):
            found, content = OK, SERIAL[:room] if request.kind == GET_ID else b""
        elif request.kind in (DISCARD, WRITE_ZEROES):
            found = self.cleared(request.kind, data)
        return found, content.ljust(room, b"\0")

    def transferred(self, kind: int, sector: int, room: int, data: bytes) -> tuple[int, bytes]:
        size = room if kind == IN else len(data)
        refused = self.read_only and kind == OUT
        if refused or size % SECTOR or self.outside(sector, size // SECTOR):
            return IOERR, b""
        place = slice(sector * SECTOR, sector * SECTOR + size)
        if kind == IN:
            return OK, bytes(self.file[place])
        self.file[place] = data
        return OK, b""

    def cleared(self, kind: int, data: bytes) -> int:
        most = int(lib.PYVMM_BLK_MAX_RANGES)
        if self.read_only or not data or len(data) % 16 or len(data) > 16 * most:
            return IOERR
        for sector, count, flags in struct.iter_unpack("<QII", data):
            if flags & ~UNMAP or (flags and kind == DISCARD):
                return UNSUPP
            if count > lib.PYVMM_BLK_MAX_SECTORS or self.outside(sector, count):
                return IOERR
            start, size = sector * SECTOR, count * SECTOR
            if kind == WRITE_ZEROES or self.path.read_bytes()[start : start + size] == bytes(size):
                self.file[start : start + size] = bytes(size)  # a discard is a hint
        return OK

    def do(self) -> None:
        """Make one request; check all that came of it."""
        request = Request(self.random, self)
        driver = self.disk.driver
        self.ring.add(*request.readable, *request.writable, indirect=True)
        used = self.memory.guest.read(self.ring.areas.device, 0x100)
        self.expect = [bytearray(mapping.view) for mapping in self.memory.mappings]
        driver.store("QueueNotify", 0)
        if not request.makes_sense:
            wait(lambda: driver.load("Status") & status.NEEDS_RESET)
            self.check()
            assert self.memory.guest.read(self.ring.areas.device + 4, 0xFC) == used[4:]
            self.start()
            return
        done: list[tuple[int, int]] = []
        wait(lambda: gather(self.ring, done))
        assert [length for _, length in done] == [request.room]
        wait(lambda: driver.load("InterruptStatus") & 1)
        driver.store("InterruptACK", 1)
        result, data = self.result(request)
        self.must_write(request.writable, data + bytes([result]))
        self.requests += 1
        self.errors += result == IOERR
        self.check()

    def check(self) -> None:
        """Compare the file, and all memory but the used ring."""
        ring = slice(self.ring.areas.device - BASE, self.ring.areas.device - BASE + 0x100)
        for mapping, must in zip(self.memory.mappings, self.expect, strict=True):
            if mapping is self.memory.mappings[0]:
                must[ring] = mapping.view[ring]
            assert mapping.view.tobytes() == must, (
                "bytes that are not the device's, or not those it said"
            )
        assert self.path.read_bytes() == self.file

    def end(self) -> None:
        worker = next(iter(self.device._workers.values()), None)
        if worker is not None:
            assert worker.c.requests == self.requests
            assert worker.c.errors == self.errors
        self.transport.close()
        self.memory.close()


@contextmanager
def hostile(seed: int, way: str) -> Iterator[Hostile]:
    random = Random(seed)  # noqa: S311
    with TemporaryDirectory() as directory:
        made = Hostile(random, Path(directory, "disk.img"), way)
        try:
            yield made
        finally:
            made.end()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12)
@given(seed=st.integers(0, ONE))
def test_each_request_does_what_it_says_and_nothing_else(way: str, seed: int) -> None:
    with hostile(seed, way) as made:
        for _ in range(40):
            made.do()


def test_a_disk_takes_more_requests_than_it_has_slots() -> None:
    with hostile(1, "io_uring") as made:
        for _ in range(3 * lib.PYVMM_BLK_DEPTH):
            made.do()


def test_a_file_that_was_cut_reads_as_an_error_and_zeroes() -> None:
    """The first part is there, the second is not: no byte of the guest's own passes for data."""
    for way in ("io_uring", "one by one"):
        with hostile(2, way) as made:
            os.truncate(made.path, 2 * SECTOR + 100)
            memory, disk = made.memory, made.disk
            disk.ring = made.ring
            memory.guest.write(BUFFERS + 0x1000, b"\xee" * 0x1000)
            parts = [Buffer(BUFFERS + 0x1000, 700, writable=True)]
            parts += [Buffer(BUFFERS + 0x1800, 4 * SECTOR - 700, writable=True)]
            assert disk.request(IN, 0, *parts) == IOERR
            found = memory.guest.read(BUFFERS + 0x1000, 700)
            found += memory.guest.read(BUFFERS + 0x1800, 4 * SECTOR - 700)
            assert found == bytes(made.file[: 2 * SECTOR + 100]).ljust(4 * SECTOR, b"\0")
            made.device.tell_failures()
            assert made.events.names() == ["disk-error"]
            made.requests = made.errors = 1


@pytest.mark.parametrize("way", ["one by one"], indirect=True)
@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_a_range_has_a_limit(make: Callable[..., Disk], path: Path, kind: int) -> None:
    most = int(lib.PYVMM_BLK_MAX_SECTORS)
    os.truncate(path, (most + 8) * SECTOR)
    disk = make()
    disk.start()
    assert disk.ranges(kind, (0, most + 1, 0)) == IOERR
    assert disk.ranges(kind, (8, most + 1, 0)) == IOERR
    with path.open("rb") as file:
        assert file.read(16 * SECTOR) == b"".join(bytes([each]) * SECTOR for each in range(16))


@pytest.mark.parametrize("way", ["io_uring"], indirect=True)
def test_more_requests_wait_than_there_are_slots(make: Callable[..., Disk]) -> None:
    """All slots are taken by requests that the host does not finish; then it does."""
    disk = make()
    disk.driver.negotiate(F_INDIRECT_DESC)
    ring = SplitDriver(disk.memory, 256)
    disk.driver.set_queue(0, 256, ring.areas)
    disk.driver.add_status(status.DRIVER_OK)
    device = disk.transport.device
    assert isinstance(device, Blk)
    ends = os.pipe()
    file, device.disk.fd = device.disk.fd, ends[0]
    disk.memory.pack(BUFFERS, "IIQ", IN, 0, 0)
    count = lib.PYVMM_BLK_DEPTH + 12
    for index in range(count):
        table, place = TABLES + 32 * index, BUFFERS + 0x1000 + 513 * index
        ring.describe(table, 0, Buffer(BUFFERS, 16), NEXT, 1)
        ring.describe(table, 1, Buffer(place, 513, writable=True))
        disk.memory.guest.write(place + 512, b"\xff")
        number = ring.free.pop(0)
        ring.describe(ring.areas.descriptors, number, Buffer(table, 32), INDIRECT)
        ring.chains[number] = [number]
        ring.offer(number)
    disk.notify()
    queue = device.slots[0].queue
    assert queue is not None
    wait(lambda: queue.c.in_flight == lib.PYVMM_BLK_DEPTH)
    os.set_blocking(ends[1], True)
    data = bytes(range(256)) * 2
    done: list[tuple[int, int]] = []
    for _ in range(count):
        os.write(ends[1], data)
        done += ring.used()
    wait(lambda: len(gather(ring, done)) == count)
    assert len({identity for identity, _ in done}) == count
    device.disk.fd = file
    disk.transport.reset()
    for index in range(count):
        place = BUFFERS + 0x1000 + 513 * index
        assert disk.memory.guest.read(place + 512, 1) == bytes([OK])
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("way", ["io_uring", "one by one"], indirect=True)
def test_a_driver_that_notifies_only_when_asked_loses_nothing(make: Callable[..., Disk]) -> None:
    """It makes the next request at the moment when the last one is used."""
    disk = make()
    disk.start()
    disk.memory.pack(BUFFERS, "IIQ", GET_ID, 0, 0)
    for _ in range(3000):
        chain = Buffer(BUFFERS, 16), Buffer(BUFFERS + 32, 21, writable=True)
        disk.ring.add(*chain, indirect=True)
        if disk.ring.wants_notify():
            disk.notify()
        for _ in range(100_000):
            if disk.ring.used():
                break
        else:
            wait(disk.ring.used)
