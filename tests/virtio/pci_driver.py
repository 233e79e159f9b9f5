"""A minimal driver of virtio-pci: it finds everything by capabilities."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping

from tests.pci.pci_bus import MASTER, MEMORY_ON, MSIX, Bus
from tests.virtio.driver import Driver
from tests.virtio.mmio_driver import Echo
from vmm._native import lib
from vmm.pci.msix import Message
from vmm.virtio.queue import Areas
from vmm.virtio.transport.pci import PciTransport

FIELDS = {
    "device_feature_select": (0x00, 4),
    "device_feature": (0x04, 4),
    "driver_feature_select": (0x08, 4),
    "driver_feature": (0x0C, 4),
    "config_msix_vector": (0x10, 2),
    "num_queues": (0x12, 2),
    "device_status": (0x14, 1),
    "config_generation": (0x15, 1),
    "queue_select": (0x16, 2),
    "queue_size": (0x18, 2),
    "queue_msix_vector": (0x1A, 2),
    "queue_enable": (0x1C, 2),
    "queue_notify_off": (0x1E, 2),
    "queue_desc_lo": (0x20, 4),
    "queue_desc_hi": (0x24, 4),
    "queue_driver_lo": (0x28, 4),
    "queue_driver_hi": (0x2C, 4),
    "queue_device_lo": (0x30, 4),
    "queue_device_hi": (0x34, 4),
    "queue_notify_data": (0x38, 2),
    "queue_reset": (0x3A, 2),
}
"""By the names of 4.1.4.3; written down again here, to catch mistakes in the transport."""

VENDOR_CAPABILITY = 9
COMMON, NOTIFY, ISR, DEVICE, ACCESS = 1, 2, 3, 4, 5
NO_VECTOR = 0xFFFF
DOORBELL = 0x0809_0040


class FakeVectors:
    """KVM's part: count messages; an eventfd is read only while its vector has a message."""

    def __init__(self) -> None:
        self.messages: dict[int, Message] = {}
        self.attached: dict[int, int] = {}

    def attach(self, vector: int, fd: int) -> None:
        assert fd not in self.attached
        self.attached[fd] = vector

    def detach(self, fd: int) -> None:
        self.attached.pop(fd, None)

    def update(self, messages: Mapping[int, Message | None]) -> None:
        for vector, message in messages.items():
            if message is None:
                self.messages.pop(vector, None)
            else:
                self.messages[vector] = message

    def pending(self, vector: int) -> bool:
        fds = [fd for fd, each in self.attached.items() if each == vector]
        return bool(fds and select.select(fds, [], [], 0)[0])

    def sent(self) -> dict[int, int]:
        """Return how often each message's data was sent since the last call."""
        found: dict[int, int] = {}
        for fd, vector in self.attached.items():
            message = self.messages.get(vector)
            if message is not None and select.select([fd], [], [], 0)[0]:
                found[message.data] = found.get(message.data, 0) + os.eventfd_read(fd)
        return found


class PciDriver(Driver):
    """Speaks to *device* as a driver does, through a bus."""

    STATUS = "device_status"
    OFFERED = "device_feature_select", "device_feature"
    ACCEPTED = "driver_feature_select", "driver_feature"

    def __init__(self, device: Echo) -> None:
        self.device = device
        self.vectors = FakeVectors()
        self.transport = PciTransport(device, self.vectors)
        self.bus = Bus(self.transport)
        self.base = self.bus.host.windows[-1].addresses.base
        self.bus.place(self.base)
        self.bus.command(MEMORY_ON | MASTER)
        self.parts: dict[int, tuple[int, int]] = {}
        for kind, at in self.bus.capability_list():
            if kind == VENDOR_CAPABILITY:
                assert self.bus.load(at + 4, 1) == 0, "BAR 0"
                what = self.bus.load(at + 3, 1)
                self.parts[what] = self.bus.load(at + 8), self.bus.load(at + 12)
                if what == NOTIFY:
                    self.multiplier = self.bus.load(at + 16)
                if what == ACCESS:
                    self.access = at
        self.msix_at = self.bus.capabilities()[MSIX]
        self.table = self.base + (self.bus.load(self.msix_at + 4) & ~7)

    def address(self, part: int, offset: int = 0) -> int:
        return self.base + self.parts[part][0] + offset

    def load(self, field: str) -> int:
        offset, size = FIELDS[field]
        return self.bus.mmio.read(self.address(COMMON, offset), size)

    def store(self, field: str, value: int) -> None:
        offset, size = FIELDS[field]
        self.bus.mmio.write(self.address(COMMON, offset), size, value)

    def isr(self) -> int:
        return self.bus.mmio.read(self.address(ISR), 1)

    def config(self, offset: int, size: int) -> int:
        return self.bus.mmio.read(self.address(DEVICE, offset), size)

    def enable_msix(self, vectors: int) -> None:
        """Give vector n the message n + 100, as Linux does."""
        self.bus.store(self.msix_at + 2, 3 << 14, 2)
        for vector in range(vectors):
            for offset, value in ((0, DOORBELL), (4, 0), (8, vector + 100), (12, 0)):
                self.bus.mmio.write(self.table + 16 * vector + offset, 4, value)
        self.bus.store(self.msix_at + 2, 1 << 15, 2)

    def set_vector(self, queue: int, vector: int) -> int:
        self.store("queue_select", queue)
        self.store("queue_msix_vector", vector)
        return self.load("queue_msix_vector")

    def set_queue(self, index: int, size: int, areas: Areas) -> int:
        """Enable a queue; return whether it is."""
        self.store("queue_select", index)
        self.store("queue_size", size)
        for name, address in zip(("desc", "driver", "device"), areas, strict=True):
            self.store(f"queue_{name}_lo", address & 0xFFFF_FFFF)
            self.store(f"queue_{name}_hi", address >> 32)
        self.store("queue_enable", 1)
        return self.load("queue_enable")

    def turn(self) -> None:
        """Do what the loop does."""
        readers = dict(self.transport.readers())
        for _ in range(2):  # the first round may signal what the second turns into INTx
            for fd in select.select(list(readers), [], [], 0)[0]:
                readers[fd]()

    def notify(self, index: int = 0) -> None:
        self.store("queue_select", index)
        offset = self.load("queue_notify_off") * self.multiplier
        self.bus.mmio.write(self.address(NOTIFY, offset), 2, index)
        self.turn()

    def intx(self) -> bool:
        return self.bus.lines[1].level


USED, CONFIG = lib.VIRTIO_MMIO_INT_VRING, lib.VIRTIO_MMIO_INT_CONFIG
