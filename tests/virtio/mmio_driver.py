"""A minimal driver of virtio-mmio, and a device for it."""

from __future__ import annotations

import os
import select

from tests.virtio.driver import Driver
from tests.virtio.ring_driver import Memory
from vmm._native import lib
from vmm.events import Events
from vmm.virtio.device import VirtioDevice
from vmm.virtio.queue import Areas, MemoryMap, Queue
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
"""By the names of table 4.1; written down again here, to catch mistakes in the transport."""


class Echo(VirtioDevice):
    """Copy each chain's readable bytes to its writable ones. Two queues."""

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


class MmioDriver(Driver):
    """Speaks to *transport* as a driver does, and reads its doorbells as a loop does."""

    STATUS = "Status"
    OFFERED = "DeviceFeaturesSel", "DeviceFeatures"
    ACCEPTED = "DriverFeaturesSel", "DriverFeatures"

    def __init__(self, transport: MmioTransport) -> None:
        self.transport = transport

    def load(self, register: str, size: int = 4) -> int:
        return self.transport.read(REGISTERS[register], size)

    def store(self, register: str, value: int, size: int = 4) -> None:
        self.transport.write(REGISTERS[register], size, value)

    def set_queue(self, index: int, size: int, areas: Areas) -> int:
        """Make a queue ready; return whether it is."""
        self.store("QueueSel", index)
        self.store("QueueSize", size)
        for name, address in zip(("Desc", "Driver", "Device"), areas, strict=True):
            self.store(f"Queue{name}Low", address & 0xFFFF_FFFF)
            self.store(f"Queue{name}High", address >> 32)
        self.store("QueueReady", 1)
        return self.load("QueueReady")

    def turn(self) -> None:
        """Do what the loop does: let the device serve the queues whose doorbells were signalled."""
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
        """Return how often the interrupt was raised since the last call."""
        try:
            return os.eventfd_read(self.transport.interrupt.fileno())
        except BlockingIOError:
            return 0


USED, CONFIG = lib.VIRTIO_MMIO_INT_VRING, lib.VIRTIO_MMIO_INT_CONFIG
