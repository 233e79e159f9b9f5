"""A minimal driver of the block device."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

from tests.virtio.driver import FORMAT_FEATURES
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, KINDS, Buffer, Memory, PackedDriver, SplitDriver
from vmm.virtio.block.registers import F_FLUSH
from vmm.virtio.transport.mmio import MmioTransport

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
UNMAP = 1

SECTORS = 256
HEADER, DATA, STATUS = BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x800


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


class Disk:
    """A disk and a driver for it."""

    def __init__(self, transport: MmioTransport, memory: Memory, path: Path) -> None:
        self.driver = MmioDriver(transport)
        self.transport = transport
        self.memory = memory
        self.path = path
        self.ring: SplitDriver | PackedDriver = SplitDriver(memory)

    def start(self, kind: str = "split", features: int = F_FLUSH) -> None:
        self.memory.guest.write(BASE, bytes(0x1_0000))
        self.ring = KINDS[kind](self.memory)
        features |= FORMAT_FEATURES[self.ring.form]
        self.driver.start(self.ring.size, self.ring.areas, features)

    def add(self, kind: int, sector: int, *data: Buffer, slot: int = 0) -> int:
        """Make a request available without a notification; *slot* has its header and status."""
        header, status = HEADER + 16 * slot, STATUS + slot
        self.memory.pack(header, "IIQ", kind, 0, sector)
        self.memory.guest.write(status, b"\xff")
        chain = (Buffer(header, 16), *data, Buffer(status, 1, writable=True))
        return self.ring.add(*chain, indirect=True)

    def notify(self) -> None:
        self.driver.store("QueueNotify", 0)

    def used(self, count: int) -> list[int]:
        """Wait for *count* requests; return their chains' ids in the order of use."""
        found: list[int] = []

        def all_there() -> bool:
            found.extend(identity for identity, _ in self.ring.used())
            return len(found) >= count

        wait(all_there)
        return found

    def status(self, slot: int = 0) -> int:
        return self.memory.guest.read(STATUS + slot, 1)[0]

    def send(self, *buffers: Buffer) -> int:
        """Make a request; return how many bytes the device says it wrote."""
        self.ring.add(*buffers, indirect=True)
        self.driver.store("QueueNotify", 0)
        used: list[tuple[int, int]] = []

        def done() -> bool:
            used.extend(self.ring.used())
            return bool(used)

        wait(done)
        ((_, length),) = used
        return length

    def request(self, kind: int, sector: int, *data: Buffer) -> int:
        self.memory.pack(HEADER, "IIQ", kind, 0, sector)
        self.memory.guest.write(STATUS, b"\xff")
        written = self.send(Buffer(HEADER, 16), *data, Buffer(STATUS, 1, writable=True))
        assert written == 1 + sum(buffer.length for buffer in data if buffer.writable)
        return self.memory.guest.read(STATUS, 1)[0]

    def write(self, sector: int, data: bytes) -> int:
        self.memory.guest.write(DATA, data)
        return self.request(OUT, sector, Buffer(DATA, len(data)))

    def read(self, sector: int, size: int) -> bytes:
        self.memory.guest.write(DATA, b"\xee" * size)
        assert self.request(IN, sector, Buffer(DATA, size, writable=True)) == OK
        return self.memory.guest.read(DATA, size)

    def ranges(self, kind: int, *ranges: tuple[int, int, int]) -> int:
        data = b"".join(struct.pack("<QII", *each) for each in ranges)
        self.memory.guest.write(DATA, data)
        return self.request(kind, 0, Buffer(DATA, len(data)))
