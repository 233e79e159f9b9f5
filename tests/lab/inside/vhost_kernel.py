"""Run in a lab host: drive vhost-net without a guest, with valid and invalid rings.

It prints a line for each thing that is as it should be, and raises otherwise.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

# For the tests' modules. Last, because vmm is the host's own, built for arm64.
sys.path.append(str(Path(__file__).parents[3]))
from tests.recorded import Recorded
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from vmm.virtio import status
from vmm.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_RESET
from vmm.virtio.net import registers
from vmm.virtio.net.device import Net
from vmm.virtio.net.registers import Address
from vmm.virtio.net.tap import Tap
from vmm.virtio.net.vhost_net import KernelNetBackend
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

SIZE = 64
KIND = b"\x88\xb5"
"""An Ethernet type for experiments (IEEE 802)."""
MAC = bytes.fromhex("525400010203")
FRAME = b"\xff" * 6 + MAC + KIND + bytes(range(100))
REPLY = MAC + b"\x52" * 6 + KIND + bytes(200)
ROOM = BUFFERS + 0x1_0000


def wait(until: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 10
    while not until():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def check(what: str, *, true: object) -> None:
    if not true:
        raise AssertionError(what)
    print(what)  # noqa: T201


class Card:
    """A device over a TAP, its driver's rings, and a socket on the other side of the TAP."""

    def __init__(self) -> None:
        self.memory, self.events = Memory(), Recorded()
        self.tap = Tap("", 1, "--net tap")
        self.tap.configure(mtu=None, bridge=None, address=None)
        self.device = Net(
            "net0",
            MemoryMap(self.memory.guest),
            self.events,
            Address(MAC),
            backend=KernelNetBackend(self.tap, "--net tap"),
            tap=self.tap,
        )
        self.driver = MmioDriver(MmioTransport(self.device))
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.wire.bind((self.tap.name, 0))
        self.wire.settimeout(10)

    def start(self) -> None:
        self.memory.guest.write(BASE, bytes(0x4_0000))
        self.rx = SplitDriver(self.memory, SIZE, at=BASE)
        self.tx = SplitDriver(self.memory, SIZE, at=BASE + 0x1_0000)
        features = registers.F_MRG_RXBUF | F_INDIRECT_DESC | F_RING_RESET
        assert self.driver.negotiate(features) & status.FEATURES_OK
        for index, ring in enumerate((self.rx, self.tx)):
            assert self.driver.set_queue(index, SIZE, ring.areas)
        self.driver.add_status(status.DRIVER_OK)
        self.offered = 0

    def sends(self) -> bool:
        self.memory.guest.write(BUFFERS, bytes(12) + FRAME)
        self.tx.add(Buffer(BUFFERS, 12), Buffer(BUFFERS + 12, len(FRAME)), indirect=True)
        self.driver.store("QueueNotify", 1)
        while self.wire.recv(2000) != FRAME:
            pass  # the kernel has things to say there, too
        return wait(lambda: bool(self.tx.used())) and wait(lambda: self.driver.interrupts() > 0)

    def receives(self) -> bool:
        places = {}
        for _ in range(8):
            place = ROOM + 0x800 * (self.offered % 32)
            self.offered += 1
            places[self.rx.add(Buffer(place, 0x800, writable=True))] = place
        self.driver.store("QueueNotify", 0)
        self.wire.send(REPLY)
        packets: list[bytes] = []

        def there() -> bool:
            for identity, length in self.rx.used():
                packets.append(self.memory.guest.read(places[identity], length)[12:])
            return REPLY in packets

        return wait(there)

    def is_broken(self) -> bool:
        self.device.attend()
        return bool(self.driver.load("Status") & status.NEEDS_RESET)


def main() -> None:
    card = Card()
    offered = card.driver.offered()
    check("offers what it should", true=offered & F_EVENT_IDX and offered & registers.F_HOST_TSO4)
    for _ in range(2):
        card.start()
        check("sends", true=card.sends())
        check("receives", true=card.receives())
    card.driver.store("QueueSel", 1)
    card.driver.store("QueueReset", 1)
    card.tx = SplitDriver(card.memory, SIZE, at=BASE + 0x3_0000)
    check("starts a ring again", true=card.driver.set_queue(1, SIZE, card.tx.areas))
    check("sends by the new ring", true=card.sends())
    check("is sound", true=not card.is_broken() and not card.events.seen)

    card.memory.pack(card.tx.areas.driver + 2, "H", 1000)
    card.driver.store("QueueNotify", 1)
    check("stands still for an index that jumps", true=wait(card.is_broken))
    check("says so", true="vhost found a ring" in str(card.events.seen))
    card.events.seen.clear()

    card.start()
    card.tx.offer(SIZE + 7)
    card.driver.store("QueueNotify", 1)
    check("stands still for a descriptor that is not there", true=wait(card.is_broken))

    card.start()
    card.tx.add(Buffer(1 << 40, 100))
    card.driver.store("QueueNotify", 1)
    check("stands still for what is no memory", true=wait(card.is_broken))

    card.start()
    check("sends after all that", true=card.sends())
    check("receives after all that", true=card.receives())
    name = card.tap.name
    card.driver.transport.close()
    check("leaves no interface", true=not Path(f"/sys/class/net/{name}").exists())


if __name__ == "__main__":
    main()
