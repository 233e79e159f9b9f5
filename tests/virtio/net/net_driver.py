"""A network device for tests: its driver's two rings, and the wire at its other end.

The wire is a pair of sockets. Datagram sockets behave as a TAP does: each read is a packet, with a
virtio header before it. Stream sockets behave as passt's does.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, KINDS, Buffer, Memory, PackedDriver, SplitDriver
from vmm.virtio import status
from vmm.virtio.net import registers
from vmm.virtio.net.device import Net
from vmm.virtio.net.registers import Address
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

HEADER = 12
MAC = bytes.fromhex("525400010203")
RECEIVE, TRANSMIT = 0, 1
SIZE = 64
DATA = BASE + 0x4_0000
"""Address of frames to send."""
ROOM = BASE + 0x6_0000
"""Address of receive buffers: the rest of the first region, 640 KiB."""


def wait(until: Callable[[], bool], seconds: float = 10) -> bool:
    """Return whether *until* became true in time."""
    limit = time.monotonic() + seconds
    while not until():
        if time.monotonic() > limit:
            return False
        time.sleep(0.001)
    return True


class Wired:
    """A device, its driver and its wire."""

    def __init__(self, memory: Memory, events: Recorded, *, stream: bool = False) -> None:
        kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        self.memory = memory
        self.stream = stream
        self.wire, theirs = socket.socketpair(socket.AF_UNIX, kind)
        theirs.settimeout(0.0)
        self.wire.settimeout(10)
        self.theirs = theirs
        self.backend = ThreadBackend([theirs.fileno()], offers=0, stream=stream)
        known = MemoryMap(memory.guest)
        self.device = Net("net0", known, events, Address(MAC), backend=self.backend)
        self.transport = MmioTransport(self.device)
        self.driver = MmioDriver(self.transport)
        self.rx: SplitDriver | PackedDriver
        self.tx: SplitDriver | PackedDriver
        self.used: list[tuple[int, int]] = []
        self.places: dict[int, list[Buffer]] = {}

    def start(self, kind: str = "split", features: int = registers.F_MRG_RXBUF) -> None:
        """Bring the device up with fresh rings."""
        self.memory.guest.write(BASE, bytes(0x4_0000))
        make = KINDS[kind]
        self.rx = make(self.memory, SIZE, at=BASE)
        self.tx = make(self.memory, SIZE, at=BASE + 0x1_0000)
        self.used, self.places = [], {}
        features |= FORMAT_FEATURES[self.rx.form]
        assert self.driver.negotiate(features) & status.FEATURES_OK
        for index, ring in enumerate((self.rx, self.tx)):
            assert self.driver.set_queue(index, SIZE, ring.areas)
        self.driver.add_status(status.DRIVER_OK)

    def stop(self) -> None:
        self.driver.store("Status", 0)

    # The guest's side

    def send(self, frame: bytes, header: bytes = bytes(HEADER), *, cut: int = HEADER) -> None:
        """Transmit a frame in two buffers; the first has *cut* bytes."""
        data = header + frame
        self.memory.guest.write(DATA, data)
        parts = [Buffer(DATA, cut), Buffer(DATA + cut, len(data) - cut)]
        self.tx.add(*(part for part in parts if part.length))
        self.driver.store("QueueNotify", TRANSMIT)

    def sent(self) -> bool:
        """Wait until the device has used what was transmitted."""
        return wait(lambda: bool(self.tx.used()))

    def offer(self, *lengths: int, parts: int = 1) -> None:
        """Make buffers of those lengths available for frames, each of *parts* descriptors."""
        at = ROOM
        for length in lengths:
            step = length // parts
            sizes = [step] * (parts - 1) + [length - step * (parts - 1)]
            buffers = []
            for size in sizes:
                buffers.append(Buffer(at, size, writable=True))
                at += size + 8  # so that an overrun is noticed
            self.places[self.rx.add(*buffers)] = buffers
        self.driver.store("QueueNotify", RECEIVE)

    def take(self) -> bytes | None:
        """Return the next packet received, with its header; None if there is none in time."""

        def there() -> bool:
            self.used += self.rx.used()
            return bool(self.used)

        if not wait(there, 2):
            return None
        first = self._part(*self.used.pop(0))
        (more,) = struct.unpack_from("<H", first, HEADER - 2)
        assert 1 <= more <= len(self.used) + 1, "all buffers of a packet come at once"
        for _ in range(more - 1):
            first += self._part(*self.used.pop(0))
        return first

    def _part(self, identity: int, length: int) -> bytes:
        data = b"".join(
            self.memory.guest.read(each.address, each.length) for each in self.places[identity]
        )
        assert length <= len(data)
        return data[:length]

    # The wire's side

    def put(self, frame: bytes, header: bytes = bytes(HEADER)) -> None:
        if self.stream:
            self.wire.sendall(struct.pack(">I", len(frame)) + frame)
        else:
            self.wire.send(header + frame)

    def get(self) -> bytes:
        """Return the next frame, with its header if this wire has one."""
        if not self.stream:
            return self.wire.recv(1 << 17)
        (length,) = struct.unpack(">I", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.wire.recv(size - len(data))
            assert part, "hung up"
            data += part
        return data

    def close(self) -> None:
        self.transport.close()
        self.wire.close()
        self.theirs.close()
