"""A disk under hostile requests, and a model of its file and of guest memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

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
    SECOND,
    SIZE,
    Buffer,
    Memory,
    SplitDriver,
    gather,
)
from vmm._native import lib
from vmm.events import Bounded
from vmm.virtio import status
from vmm.virtio.block.device import Blk
from vmm.virtio.block.image_format import MAGIC
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


class Limit(NamedTuple):
    """Ranges in one request, and sectors in each."""

    ranges: int
    sectors: int


MOST = {
    DISCARD: Limit(lib.PYVMM_BLK_DISCARD_RANGES, lib.PYVMM_BLK_DISCARD_SECTORS),
    WRITE_ZEROES: Limit(lib.PYVMM_BLK_ZEROES_RANGES, lib.PYVMM_BLK_ZEROES_SECTORS),
}


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
            data = random.randbytes(length)
            if length and random.random() < 0.3:
                magic = random.choice(list(MAGIC))
                data = random.choice((magic, magic[:-1] + b"?")) + data[len(magic) :]
            return data
        if self.kind in (DISCARD, WRITE_ZEROES):
            most = MOST[self.kind].ranges
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
        self.guessed = random.random() < 0.5
        self.device = Blk(
            "disk0", known, self.events, backing, serial=SERIAL.decode(), guessed=self.guessed
        )
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
        if self.guessed and sector == 0 and data.startswith(tuple(MAGIC)):
            return IOERR, b""
        self.file[place] = data
        return OK, b""

    def cleared(self, kind: int, data: bytes) -> int:
        most = MOST[kind]
        if self.read_only or not data or len(data) % 16 or len(data) > 16 * most.ranges:
            return IOERR
        for sector, count, flags in struct.iter_unpack("<QII", data):
            if flags & ~UNMAP or (flags and kind == DISCARD):
                return UNSUPP
            if count > most.sectors or self.outside(sector, count):
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
        self.device.tell_failures()
        assert "disk-error" not in self.events.names(), "the driver failed"

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
