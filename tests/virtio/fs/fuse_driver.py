"""A driver of the file system device with a minimal FUSE client: <linux/fuse.h>, 7.38."""

from __future__ import annotations

import errno
import struct

from tests.virtio.block.blk_driver import wait
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from vmm.virtio import status
from vmm.virtio.transport.mmio import MmioTransport

LOOKUP, FORGET, GETATTR, MKDIR, OPEN, READ, WRITE, INIT = 1, 2, 3, 9, 14, 15, 16, 26
ROOT = 1
HIPRIO = 0
IN = struct.Struct("<IIQQIIII")
OUT = struct.Struct("<IiQ")
ROOM = 0x1_1000
"""Bytes of guest memory for one request and its answer."""
PLACES = 4


class Client:
    """A guest's kernel, as far as the device sees it."""

    def __init__(self, transport: MmioTransport, memory: Memory) -> None:
        self.driver = MmioDriver(transport)
        self.device = transport.device
        self.memory = memory
        self.unique = 0

    def start(self) -> None:
        """Reset the device, and start again."""
        self.driver.store("Status", 0)
        self.memory.guest.write(BASE, bytes(0x4_0000))
        self.rings = [SplitDriver(self.memory, at=BASE + 0x1_0000 * n) for n in range(2)]
        self.waiting: dict[tuple[int, int], int] = {}
        self.free = list(range(PLACES))
        assert self.driver.negotiate(1 << 28) & status.FEATURES_OK
        for index, ring in enumerate(self.rings):
            assert self.driver.set_queue(index, ring.size, ring.areas)
        self.driver.add_status(status.DRIVER_OK)

    def send(
        self, opcode: int, body: bytes = b"", *, room: int = 0x400, node: int = ROOT, queue: int = 1
    ) -> tuple[int, int]:
        """Send a request; return what `answer` takes. *room*: bytes for its answer; 0: none."""
        self.unique += 2
        place = self.free.pop()
        at = BUFFERS + ROOM * place
        data = IN.pack(IN.size + len(body), opcode, self.unique, node, 0, 0, 1, 0) + body
        self.memory.guest.write(at, data)
        buffers = [Buffer(at, len(data))]
        if room:
            buffers.append(Buffer(at + 0x1000, OUT.size + room, writable=True))
        head = self.rings[queue].add(*buffers, indirect=True)
        self.driver.store("QueueNotify", queue)
        self.waiting[queue, head] = place
        return queue, head

    def answer(self, sent: tuple[int, int]) -> tuple[int, bytes]:
        """Return the error and the rest of the answer to what was sent."""
        found: dict[tuple[int, int], int] = {}

        def done() -> bool:
            self.device.attend()  # type: ignore[attr-defined]
            for queue, ring in enumerate(self.rings):
                for head, length in ring.used():
                    found[queue, head] = length
            return sent in found

        wait(done)
        assert set(found) == {sent}, "one at a time"
        place, length = self.waiting.pop(sent), found[sent]
        self.free.append(place)
        if not length:
            return 0, b""
        data = self.memory.guest.read(BUFFERS + ROOM * place + 0x1000, length)
        size, error, unique = OUT.unpack_from(data)
        assert size == length
        assert unique <= self.unique
        return -error, data[OUT.size :]

    def call(
        self, opcode: int, body: bytes = b"", *, room: int = 0x400, node: int = ROOT
    ) -> tuple[int, bytes]:
        return self.answer(self.send(opcode, body, room=room, node=node))

    def mount(self) -> int:
        """Start a session; return the error."""
        error, _ = self.call(INIT, struct.pack("<IIII48x", 7, 38, 1 << 16, 0), room=64)
        return error

    def look_up(self, name: str, node: int = ROOT) -> int:
        error, entry = self.call(LOOKUP, name.encode() + b"\0", node=node)
        if error:
            raise OSError(error, name)
        (found,) = struct.unpack_from("<Q", entry)
        return int(found)

    def open(self, node: int) -> int:
        error, answer = self.call(OPEN, struct.pack("<II", 0, 0), node=node)
        if error:
            raise OSError(error, "open")
        (handle,) = struct.unpack_from("<Q", answer)
        return int(handle)

    def send_read(self, node: int, handle: int, size: int, offset: int = 0) -> tuple[int, int]:
        body = struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)
        return self.send(READ, body, node=node, room=size)

    def read(self, name: str, size: int) -> bytes:
        node = self.look_up(name)
        error, data = self.answer(self.send_read(node, self.open(node), size))
        if error:
            raise OSError(error, name)
        return data


NOT_CONNECTED = errno.ENOTCONN
