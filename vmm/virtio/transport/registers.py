"""The registers that both transports have, wherever each has them (VIRTIO 1.2, 4.1.4.3, 4.2.2).

virtio-mmio         virtio-pci              selects
DeviceFeaturesSel   device_feature_select   32 bits of the offered features
DriverFeaturesSel   driver_feature_select   32 bits of the accepted features
QueueSel            queue_select            a queue: its size, addresses, ready, reset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.virtio.device import F_RING_RESET, FEATURE_WORDS
from vmm.virtio.state import SelectorState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.virtio.device import QueueSlot, VirtioDevice

HALVES: Final = tuple(
    (area, shift) for area in ("descriptors", "driver", "device") for shift in (0, 32)
)
"""The order in which `CommonRegisters` takes the registers of a queue's addresses."""


class Fields:
    """A bus device of fields, each known by offset and size in bytes.

    Accesses of another size or to another offset read as zero and are dropped.
    """

    def __init__(
        self,
        loads: Mapping[tuple[int, int], Callable[[], int]],
        stores: Mapping[tuple[int, int], Callable[[int], object]],
    ) -> None:
        self._loads = loads
        self._stores = stores

    def read(self, offset: int, size: int) -> int:
        """Return the field's value."""
        load = self._loads.get((offset, size))
        return 0 if load is None else load()

    def write(self, offset: int, size: int, value: int) -> None:
        """Store *value* to the field."""
        store = self._stores.get((offset, size))
        if store is not None:
            store(value)


class DeviceConfiguration:
    """The device's own configuration (4.1.4.6, 4.2.2), as a bus device."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes of the configuration."""
        return self._device.read_config(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store *size* bytes to the configuration."""
        self._device.write_config(offset, value.to_bytes(size, "little"))


class CommonRegisters:
    """The selectors of *device*'s transport, and the registers behind them.

    A driver may select a queue that does not exist: its registers then read as zero, and stores
    are dropped.
    """

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Set all selectors to 0."""
        self.device_word = 0
        self.driver_word = 0
        self.selected = 0

    def state(self) -> SelectorState:
        """Return the selectors."""
        return SelectorState(self.device_word, self.driver_word, self.selected)

    def restore(self, state: SelectorState) -> None:
        """Take over the selectors."""
        self.device_word, self.driver_word = state.device_word, state.driver_word
        self.selected = state.queue

    # Features

    def select_device_word(self, word: int) -> None:
        """Choose which 32 bits of the offered features `offered` returns."""
        self.device_word = word

    def select_driver_word(self, word: int) -> None:
        """Choose which 32 bits of the accepted features `accept` stores and `accepted` returns."""
        self.driver_word = word

    def offered(self) -> int:
        """Return the selected 32 bits of the offered features."""
        return self._device.features(self.device_word)

    def accepted(self) -> int:
        """Return the selected 32 bits of the accepted features."""
        word = self.driver_word
        return self._device.accepted >> 32 * word & 0xFFFF_FFFF if word < FEATURE_WORDS else 0

    def accept(self, bits: int) -> None:
        """Store the selected 32 bits of the accepted features."""
        self._device.accept(self.driver_word, bits)

    # The selected queue

    def select_queue(self, index: int) -> None:
        """Select a queue, which need not exist."""
        self.selected = index

    def queue(self) -> int | None:
        """Return the number of the selected queue; None if there is no such queue."""
        selected = self.selected  # once: another vCPU may select meanwhile
        return selected if selected < len(self._device.slots) else None

    def slot(self) -> QueueSlot | None:
        """Return the selected queue; None if there is no such queue."""
        return None if (index := self.queue()) is None else self._device.slots[index]

    def ready(self) -> int:
        """Return 1 if the selected queue is ready, else 0."""
        slot = self.slot()
        return int(slot is not None and slot.queue is not None)

    def set_size(self, size: int) -> None:
        """Store the number of descriptors of the selected queue."""
        if (index := self.queue()) is not None:
            self._device.set_size(index, size)

    def address(self, area: str, shift: int) -> int:
        """Return 32 bits of an area's address, from bit *shift* on."""
        slot = self.slot()
        return 0 if slot is None else getattr(slot.areas, area) >> shift & 0xFFFF_FFFF

    def set_address(self, area: str, shift: int, value: int) -> None:
        """Store 32 bits of an area's address, from bit *shift* on."""
        if (index := self.queue()) is not None:
            self._device.set_address(index, area, shift, value)

    def enable(self) -> None:
        """Make the selected queue ready."""
        if (index := self.queue()) is not None:
            self._device.enable_queue(index)

    def disable(self) -> None:
        """Stop the selected queue (QueueReady of virtio-mmio, 4.2.2)."""
        if (index := self.queue()) is not None:
            self._device.reset_queue(index)

    def reset_queue(self) -> int | None:
        """Reset the selected queue (2.6.1); return its number, None if nothing was reset.

        Takes VIRTIO_F_RING_RESET. The reset is done when this returns: both the reset register
        and the ready register of the queue read 0 from then on.
        """
        index = self.queue()
        if index is not None and self._device.accepted & F_RING_RESET:
            self._device.reset_queue(index)
            return index
        return None

    def notify(self, index: int) -> None:
        """Signal the doorbell of queue *index*, as KVM does if it has the ioeventfd."""
        if index < len(self._device.slots):
            self._device.slots[index].doorbell.signal()
