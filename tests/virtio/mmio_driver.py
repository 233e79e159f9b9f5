"""A driver of virtio-mmio, as small as can be, and what surrounds the device: a loop, events."""

from __future__ import annotations

import os
import select

from tests.virtio.ring_driver import Memory
from vmm._native import lib
from vmm.events import Events
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.device import VirtioDevice
from vmm.virtio.queue import Areas, Format, MemoryMap, Queue
from vmm.virtio.transport.mmio import MmioTransport

REGISTERS = {
    "MagicValue": 0x000,
    "Version": 0x004,
    "DeviceID": 0x008,
    "VendorID": 0x00C,
    "DeviceFeatures": 0x010,
    "DeviceFeaturesSel": 0x014,
    "DriverFeatures": 0x020,
    "DriverFeaturesSel": 0x024,
    "QueueSel": 0x030,
    "QueueSizeMax": 0x034,
    "QueueSize": 0x038,
    "QueueReady": 0x044,
    "QueueNotify": 0x050,
    "InterruptStatus": 0x060,
    "InterruptACK": 0x064,
    "Status": 0x070,
    "QueueDescLow": 0x080,
    "QueueDescHigh": 0x084,
    "QueueDriverLow": 0x090,
    "QueueDriverHigh": 0x094,
    "QueueDeviceLow": 0x0A0,
    "QueueDeviceHigh": 0x0A4,
    "SHMLenLow": 0x0B0,
    "SHMBaseHigh": 0x0BC,
    "QueueReset": 0x0C0,
    "ConfigGeneration": 0x0FC,
    "Config": 0x100,
}
"""By table 4.1's names: typed once more, against mistakes in what the transport says."""

FORMAT_FEATURES = {
    Format(): 0,
    Format(indirect=True): virtio.F_INDIRECT_DESC,
    Format(packed=True, indirect=True): virtio.F_INDIRECT_DESC | virtio.F_RING_PACKED,
}


class Recorded(Events):
    """Keeps what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, object]]] = []

    def emit(self, event: str, **fields: object) -> None:
        self.seen.append((event, fields))

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


class Echo(VirtioDevice):
    """Copies what it reads of a chain to what it may write of it. Two queues."""

    device_id = 42

    def __init__(self, memory: Memory, events: Events) -> None:
        super().__init__("echo", MemoryMap(memory.guest), events, [8, 16], features=1 << 5)
        self.configuration = bytes(range(1, 11))
        self.written: list[tuple[int, bytes]] = []
        self.calls: list[str] = []

    def serve(self, index: int, queue: Queue) -> None:
        for chain in queue.batch(queue.size):
            queue.push(chain.id, chain.write(chain.read(chain.readable)))

    def config(self) -> bytes:
        return self.configuration

    def write_config(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))

    def queue_started(self, index: int, queue: Queue) -> None:
        self.calls.append(f"started {index}")

    def queue_stopped(self, index: int) -> None:
        self.calls.append(f"stopped {index}")


class MmioDriver:
    """Speaks to *transport* as a driver does, and rings its doorbells' other ends as a loop."""

    def __init__(self, transport: MmioTransport) -> None:
        self.transport = transport

    def load(self, register: str, size: int = 4) -> int:
        return self.transport.read(REGISTERS[register], size)

    def store(self, register: str, value: int, size: int = 4) -> None:
        self.transport.write(REGISTERS[register], size, value)

    def add_status(self, bit: int) -> int:
        self.store("Status", self.load("Status") | bit)
        return self.load("Status")

    def offered(self) -> int:
        features = 0
        for word in range(4):
            self.store("DeviceFeaturesSel", word)
            features |= self.load("DeviceFeatures") << 32 * word
        return features

    def accept(self, features: int) -> None:
        for word in range(2):
            self.store("DriverFeaturesSel", word)
            self.store("DriverFeatures", features >> 32 * word & 0xFFFF_FFFF)

    def negotiate(self, features: int = 0) -> int:
        """Go to FEATURES_OK, if the device agrees (3.1.1); return the status."""
        self.store("Status", 0)
        self.add_status(status.ACKNOWLEDGE)
        self.add_status(status.DRIVER)
        self.accept(features | virtio.F_VERSION_1)
        return self.add_status(status.FEATURES_OK)

    def set_queue(self, index: int, size: int, areas: Areas) -> int:
        """Make a queue ready; return whether it is."""
        self.store("QueueSel", index)
        self.store("QueueSize", size)
        for name, address in zip(("Desc", "Driver", "Device"), areas, strict=True):
            self.store(f"Queue{name}Low", address & 0xFFFF_FFFF)
            self.store(f"Queue{name}High", address >> 32)
        self.store("QueueReady", 1)
        return self.load("QueueReady")

    def start(self, size: int, areas: Areas, features: int = 0) -> None:
        """Go all the way, with queue 0 ready."""
        assert self.negotiate(features) & status.FEATURES_OK
        self.set_queue(0, size, areas)
        self.add_status(status.DRIVER_OK)

    def turn(self) -> None:
        """Do what the loop does: let the device serve whatever doorbell was rung."""
        device = self.transport.device
        doorbells = {slot.doorbell.fileno(): index for index, slot in enumerate(device.slots)}
        ready, _, _ = select.select(list(doorbells), [], [], 0)
        for fd in ready:
            device.process(doorbells[fd])

    def notify(self, index: int = 0) -> None:
        """Store to QueueNotify, and let the device serve."""
        self.store("QueueNotify", index)
        self.turn()

    def interrupts(self) -> int:
        """Return how often the interrupt was raised since last asked."""
        try:
            return os.eventfd_read(self.transport.interrupt.fileno())
        except BlockingIOError:
            return 0


USED, CONFIG = lib.VIRTIO_MMIO_INT_VRING, lib.VIRTIO_MMIO_INT_CONFIG
