"""The virtio-mmio transport, version 2 (VIRTIO 1.2, 4.2): registers, one interrupt.

    0x000  who it is, features, queues, notification, interrupt status, device status
    0x100  the device's own configuration

What the driver stores to QueueNotify, and the interrupt, have eventfds that KVM can take over
(`doorbells`, `interrupt`): then neither costs an exit. The interrupt is an edge: it is raised
anew for each reason. From DRIVER_OK to reset, InterruptStatus says that chains may have been
used: whoever used some, be it the kernel or another process, has only the eventfd to write, and
to acknowledge that bit is to do nothing. InterruptStatus remembers a change of configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.notify import CONFIG, USED, EventFd, Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.virtio.device import QueueSlot, VirtioDevice

SIZE: Final = 0x200
"""Bytes of guest physical address space: enough for every configuration there is."""

MAGIC: Final = int.from_bytes(b"virt", "little")
VERSION: Final = 2
VENDOR: Final = int.from_bytes(b"pyvm", "little")

QUEUE_RESET: Final = 0x0C0
"""QueueReset (4.2.2), which <linux/virtio_mmio.h> lacks."""

NOWHERE: Final = 0xFFFF_FFFF
"""Half of the length and of the base of a shared memory region that is not there (4.2.2)."""

ADDRESSES: Final = {
    lib.VIRTIO_MMIO_QUEUE_DESC_LOW: ("descriptors", 0),
    lib.VIRTIO_MMIO_QUEUE_DESC_HIGH: ("descriptors", 32),
    lib.VIRTIO_MMIO_QUEUE_AVAIL_LOW: ("driver", 0),
    lib.VIRTIO_MMIO_QUEUE_AVAIL_HIGH: ("driver", 32),
    lib.VIRTIO_MMIO_QUEUE_USED_LOW: ("device", 0),
    lib.VIRTIO_MMIO_QUEUE_USED_HIGH: ("device", 32),
}
"""Which half of which address a register is."""


class Notification(NamedTuple):
    """A store of *value*, four bytes, at *offset* rings the doorbell *fd*."""

    offset: int
    value: int
    fd: int


class MmioTransport(Closeable):
    """Shows *device* as registers; a bus device. Owns the device.

    Accesses to registers are four aligned bytes (4.2.2.2); others read as zero and are dropped.
    """

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.interrupt = Interrupt()
        self._unheard = EventFd()
        """What KVM signals instead of an exit for what needs nothing done."""
        device.interrupts = self
        self._device_word = self._driver_word = 0
        self._selected = 0
        constant = {
            lib.VIRTIO_MMIO_MAGIC_VALUE: MAGIC,
            lib.VIRTIO_MMIO_VERSION: VERSION,
            lib.VIRTIO_MMIO_DEVICE_ID: device.device_id,
            lib.VIRTIO_MMIO_VENDOR_ID: VENDOR,
            lib.VIRTIO_MMIO_SHM_LEN_LOW: NOWHERE,
            lib.VIRTIO_MMIO_SHM_LEN_HIGH: NOWHERE,
            lib.VIRTIO_MMIO_SHM_BASE_LOW: NOWHERE,
            lib.VIRTIO_MMIO_SHM_BASE_HIGH: NOWHERE,
        }
        self._loads: dict[int, Callable[[], int]] = {
            **{offset: (lambda value=value: value) for offset, value in constant.items()},  # type: ignore[misc]
            lib.VIRTIO_MMIO_DEVICE_FEATURES: lambda: device.features(self._device_word),
            lib.VIRTIO_MMIO_QUEUE_NUM_MAX: self._size_max,
            lib.VIRTIO_MMIO_QUEUE_READY: self._ready,
            lib.VIRTIO_MMIO_INTERRUPT_STATUS: lambda: self.interrupt.status,
            lib.VIRTIO_MMIO_STATUS: lambda: device.status,
            lib.VIRTIO_MMIO_CONFIG_GENERATION: lambda: device.generation & 0xFFFF_FFFF,
        }
        self._stores: dict[int, Callable[[int], None]] = {
            lib.VIRTIO_MMIO_DEVICE_FEATURES_SEL: self._select_device_word,
            lib.VIRTIO_MMIO_DRIVER_FEATURES_SEL: self._select_driver_word,
            lib.VIRTIO_MMIO_DRIVER_FEATURES: lambda bits: device.accept(self._driver_word, bits),
            lib.VIRTIO_MMIO_QUEUE_SEL: self._select,
            lib.VIRTIO_MMIO_QUEUE_NUM: self._set_size,
            lib.VIRTIO_MMIO_QUEUE_READY: self._set_ready,
            lib.VIRTIO_MMIO_QUEUE_NOTIFY: self._notify,
            lib.VIRTIO_MMIO_INTERRUPT_ACK: self.interrupt.acknowledge,
            lib.VIRTIO_MMIO_STATUS: self._set_status,
            QUEUE_RESET: self._reset_queue,
        }

    # The bus's side

    def read(self, offset: int, size: int) -> int:
        """Return a register, or configuration."""
        if offset >= lib.VIRTIO_MMIO_CONFIG:
            return self.device.read_config(offset - lib.VIRTIO_MMIO_CONFIG, size)
        load = self._loads.get(offset) if size == 4 else None
        return load() if load is not None else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Take what the driver stored."""
        if offset >= lib.VIRTIO_MMIO_CONFIG:
            data = value.to_bytes(size, "little")
            self.device.write_config(offset - lib.VIRTIO_MMIO_CONFIG, data)
        elif size == 4:
            if offset in ADDRESSES:
                self._set_address(offset, value)
            elif (store := self._stores.get(offset)) is not None:
                store(value)

    def _select_device_word(self, word: int) -> None:
        self._device_word = word

    def _select_driver_word(self, word: int) -> None:
        self._driver_word = word

    def _select(self, index: int) -> None:
        self._selected = index

    def _slot(self) -> QueueSlot | None:
        """Return the selected queue, if there is one."""
        slots, selected = self.device.slots, self._selected
        return slots[selected] if selected < len(slots) else None

    def _size_max(self) -> int:
        slot = self._slot()
        return 0 if slot is None else slot.size_max

    def _ready(self) -> int:
        slot = self._slot()
        return 0 if slot is None or slot.queue is None else 1

    def _set_size(self, size: int) -> None:
        selected = self._selected
        if selected < len(self.device.slots):
            self.device.set_size(selected, size)

    def _set_address(self, offset: int, value: int) -> None:
        selected = self._selected
        if selected < len(self.device.slots):
            self.device.set_address(selected, *ADDRESSES[offset], value)

    def _set_ready(self, ready: int) -> None:
        index = self._selected
        if index < len(self.device.slots):
            if ready & 1:
                self.device.enable_queue(index)
            else:
                self.device.reset_queue(index)

    def _reset_queue(self, value: int) -> None:
        # Done when the store is: so both QueueReset and QueueReady read 0 from then on.
        selected = self._selected
        agreed = self.device.accepted & virtio.F_RING_RESET
        if value & 1 and agreed and selected < len(self.device.slots):
            self.device.reset_queue(selected)

    def _notify(self, index: int) -> None:
        """Do what KVM does for us, if it was asked to."""
        if index < len(self.device.slots):
            self.device.slots[index].doorbell.ring()

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._device_word = self._driver_word = self._selected = 0
        if value & status.DRIVER_OK:
            self.interrupt.stand(USED)  # before any queue starts
        self.device.write_status(value)

    # The device's side (`vmm.virtio.device.Interrupts`)

    def of_queue(self, queue: int) -> Interrupt:  # noqa: ARG002  (one interrupt for all)
        """Return the interrupt."""
        return self.interrupt

    def used(self, queue: int) -> None:  # noqa: ARG002
        """Interrupt: chains were used."""
        self.interrupt.raise_(USED)

    def config_changed(self) -> None:
        """Interrupt: the configuration changed."""
        self.interrupt.raise_(CONFIG)

    def clear(self) -> None:
        """Forget interrupts."""
        self.interrupt.clear()

    # The machine's side

    def doorbells(self) -> list[Notification]:
        """Return the stores that KVM can take: notifications, and the commonest acknowledgement."""
        return [
            *(
                Notification(lib.VIRTIO_MMIO_QUEUE_NOTIFY, index, slot.doorbell.fileno())
                for index, slot in enumerate(self.device.slots)
            ),
            Notification(lib.VIRTIO_MMIO_INTERRUPT_ACK, USED, self._unheard.fileno()),
        ]

    def reset(self) -> None:
        """Be as after power-on."""
        self._set_status(0)

    def close(self) -> None:
        """Close the device and the interrupt. Idempotent."""
        self.device.close()
        self.interrupt.close()
        self._unheard.close()
