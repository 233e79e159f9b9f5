"""What a driver does over either transport (VIRTIO 1.2, 3.1.1), by each transport's own names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tests.virtio.ring_driver import BUFFERS, Buffer, PackedDriver, SplitDriver
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.queue import Areas, Format

FORMAT_FEATURES = {
    Format(): 0,
    Format(indirect=True): virtio.F_INDIRECT_DESC,
    Format(packed=True, indirect=True): virtio.F_INDIRECT_DESC | virtio.F_RING_PACKED,
}


class Driver(ABC):
    """A driver that loads and stores registers by name."""

    STATUS: ClassVar[str]
    OFFERED: ClassVar[tuple[str, str]]
    ACCEPTED: ClassVar[tuple[str, str]]
    """A selector, and the 32 feature bits that it selects."""

    @abstractmethod
    def load(self, register: str) -> int:
        """Return a register."""

    @abstractmethod
    def store(self, register: str, value: int) -> None:
        """Store *value* to a register."""

    @abstractmethod
    def set_queue(self, index: int, size: int, areas: Areas) -> int:
        """Make a queue ready; return whether it is."""

    @abstractmethod
    def notify(self, index: int = 0) -> None:
        """Notify queue *index*, and let the device serve."""

    def add_status(self, bit: int) -> int:
        self.store(self.STATUS, self.load(self.STATUS) | bit)
        return self.load(self.STATUS)

    def offered(self) -> int:
        select, bits = self.OFFERED
        features = 0
        for word in range(4):
            self.store(select, word)
            features |= self.load(bits) << 32 * word
        return features

    def accept(self, features: int) -> None:
        select, bits = self.ACCEPTED
        for word in range(2):
            self.store(select, word)
            self.store(bits, features >> 32 * word & 0xFFFF_FFFF)

    def negotiate(self, features: int = 0) -> int:
        """Go to FEATURES_OK, if the device agrees (3.1.1); return the status."""
        self.store(self.STATUS, 0)
        self.add_status(status.ACKNOWLEDGE)
        self.add_status(status.DRIVER)
        self.accept(features | virtio.F_VERSION_1)
        return self.add_status(status.FEATURES_OK)

    def start(self, size: int, areas: Areas, features: int = 0) -> None:
        """Go to DRIVER_OK, with queue 0 ready."""
        assert self.negotiate(features) & status.FEATURES_OK
        self.set_queue(0, size, areas)
        self.add_status(status.DRIVER_OK)


def start(driver: Driver, ring: SplitDriver | PackedDriver, features: int = 0) -> None:
    """Start the device with *ring* as queue 0."""
    driver.start(ring.size, ring.areas, FORMAT_FEATURES[ring.form] | features)


def echo_once(driver: Driver, ring: SplitDriver | PackedDriver, index: int = 0) -> None:
    """Let the device, an `Echo`, copy ten bytes."""
    ring.memory.guest.write(BUFFERS, b"0123456789")
    ring.memory.guest.write(BUFFERS + 16, bytes(10))
    identity = ring.add(Buffer(BUFFERS, 10), Buffer(BUFFERS + 16, 10, writable=True))
    driver.notify(index)
    assert ring.used() == [(identity, 10)]
    assert ring.memory.guest.read(BUFFERS + 16, 10) == b"0123456789"
