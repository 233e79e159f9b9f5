"""The virtio-pci transport, modern only (VIRTIO 1.2, 4.1): a PCI function with one BAR.

    BAR 0   0x0000  common configuration
            0x1000  ISR status
            0x2000  the device's own configuration
            0x3000  notification, four bytes a queue
            0x4000  MSI-X table, 0x5000 its pending bits

Notifications have eventfds that KVM can take over (`doorbells`), as have the interrupts (see
`vmm.virtio.transport.pci_interrupts`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import lib
from vmm.bus import MmioBus
from vmm.pci import capability
from vmm.pci.bar import Bar
from vmm.pci.function import INTA, Identity, PciFunction
from vmm.pci.msix import Msix
from vmm.virtio import device as virtio
from vmm.virtio.transport.pci_interrupts import NO_VECTOR, PciInterrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.virtio.device import QueueSlot, VirtioDevice
    from vmm.virtio.transport.pci_interrupts import Vectors

VENDOR: Final = 0x1AF4
DEVICE_BASE: Final = 0x1040
"""Added to a device's type (4.1.2.1)."""
REVISION: Final = 1
"""Non-transitional (4.1.2.1)."""

CLASSES: Final = {
    lib.VIRTIO_ID_NET: 0x02_00_00,
    lib.VIRTIO_ID_BLOCK: 0x01_80_00,
    lib.VIRTIO_ID_CONSOLE: 0x07_80_00,
}
"""Class codes by type; tools show them, drivers go by the device id."""
OTHER_CLASS: Final = 0xFF_00_00

PART: Final = 0x1000
"""Bytes that each structure has room for; one page, so that a guest can pass them on apart."""
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = range(0, 6 * PART, PART)
SIZE: Final = 0x8000

NOTIFY_STEP: Final = 4
"""Bytes between two queues' notification addresses (notify_off_multiplier)."""
NOTIFY_WIDTH: Final = 2
"""Bytes of a notification: the queue's number (4.1.5.2)."""

VECTORS_MAX: Final = PART // lib.PCI_MSIX_ENTRY_SIZE

ADDRESSES: Final = {
    lib.VIRTIO_PCI_COMMON_Q_DESCLO: ("descriptors", 0),
    lib.VIRTIO_PCI_COMMON_Q_DESCHI: ("descriptors", 32),
    lib.VIRTIO_PCI_COMMON_Q_AVAILLO: ("driver", 0),
    lib.VIRTIO_PCI_COMMON_Q_AVAILHI: ("driver", 32),
    lib.VIRTIO_PCI_COMMON_Q_USEDLO: ("device", 0),
    lib.VIRTIO_PCI_COMMON_Q_USEDHI: ("device", 32),
}
"""Which half of which address a field is."""


class Notification(NamedTuple):
    """A store of `NOTIFY_WIDTH` bytes, *offset* into BAR 0, rings the doorbell *fd*."""

    offset: int
    fd: int


class PciTransport(PciFunction):
    """Shows *device* as a PCI function. Owns the device."""

    def __init__(self, device: VirtioDevice, vectors: Vectors) -> None:
        self.device = device
        self._bar = MmioBus()
        identity = Identity(
            VENDOR,
            DEVICE_BASE + device.device_id,
            CLASSES.get(device.device_id, OTHER_CLASS),
            REVISION,
            VENDOR,
            DEVICE_BASE + device.device_id,
        )
        super().__init__(device.name, identity, [Bar(0, SIZE, self._bar)], pin=INTA)
        self._device_word = self._driver_word = self._selected = 0
        queues = len(device.slots)
        count = min(queues + 1, VECTORS_MAX)
        self._config_source = queues
        self.interrupts = PciInterrupts(queues, count, vectors, self.set_intx)
        self._add_capabilities(Msix(count, vectors))
        self._add_registers()
        device.interrupts = self.interrupts

    # What it looks like

    def _add_capabilities(self, msix: Msix) -> None:
        parts = (
            (lib.VIRTIO_PCI_CAP_COMMON_CFG, COMMON, PART, b""),
            (lib.VIRTIO_PCI_CAP_ISR_CFG, ISR, PART, b""),
            (lib.VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, PART, b""),
            (
                lib.VIRTIO_PCI_CAP_NOTIFY_CFG,
                NOTIFY,
                PART,
                NOTIFY_STEP.to_bytes(4, "little"),
            ),
        )
        self.add_msix(msix, (0, TABLE), (0, PENDING))
        for kind, offset, length, more in parts:
            place = offset.to_bytes(4, "little") + length.to_bytes(4, "little")
            body = bytes([kind, 0, 0, 0, 0]) + place + more
            self.config.add_capability(capability.vendor(body))
        # Access through configuration space (4.1.4.9): which BAR, where, how much; then the data.
        body = bytes([lib.VIRTIO_PCI_CAP_PCI_CFG]) + bytes(16)
        writable = b"\0\xff\0\0\0" + b"\xff" * 12
        self._access_at = self.config.add_capability(capability.vendor(body, writable))
        self.add_power_management()
        self.add_express()
        for offset, size, device in (
            (TABLE, msix.table_size, msix.table),
            (PENDING, msix.pba_size, msix.pba),
        ):
            self._bar.attach(offset, size, device)

    def _add_registers(self) -> None:
        common = Registers(
            {
                (lib.VIRTIO_PCI_COMMON_DFSELECT, 4): lambda: self._device_word,
                (lib.VIRTIO_PCI_COMMON_DF, 4): lambda: self.device.features(self._device_word),
                (lib.VIRTIO_PCI_COMMON_GFSELECT, 4): lambda: self._driver_word,
                (lib.VIRTIO_PCI_COMMON_GF, 4): self._accepted,
                (lib.VIRTIO_PCI_COMMON_MSIX, 2): lambda: self.interrupts.assigned[-1],
                (lib.VIRTIO_PCI_COMMON_NUMQ, 2): lambda: len(self.device.slots),
                (lib.VIRTIO_PCI_COMMON_STATUS, 1): lambda: self.device.status,
                (lib.VIRTIO_PCI_COMMON_CFGGENERATION, 1): lambda: self.device.generation & 0xFF,
                (lib.VIRTIO_PCI_COMMON_Q_SELECT, 2): lambda: self._selected,
                (lib.VIRTIO_PCI_COMMON_Q_SIZE, 2): lambda: self._of_slot("size") & 0xFFFF,
                (lib.VIRTIO_PCI_COMMON_Q_MSIX, 2): self._queue_vector,
                (lib.VIRTIO_PCI_COMMON_Q_ENABLE, 2): lambda: int(bool(self._of_slot("queue"))),
                (lib.VIRTIO_PCI_COMMON_Q_NOFF, 2): lambda: self._selected if self._slot() else 0,
                **{(field, 4): partial(self._address, field) for field in ADDRESSES},
            },
            {
                (lib.VIRTIO_PCI_COMMON_DFSELECT, 4): self._select_device_word,
                (lib.VIRTIO_PCI_COMMON_GFSELECT, 4): self._select_driver_word,
                (lib.VIRTIO_PCI_COMMON_GF, 4): self._accept,
                (lib.VIRTIO_PCI_COMMON_MSIX, 2): self._set_config_vector,
                (lib.VIRTIO_PCI_COMMON_STATUS, 1): self._set_status,
                (lib.VIRTIO_PCI_COMMON_Q_SELECT, 2): self._select,
                (lib.VIRTIO_PCI_COMMON_Q_SIZE, 2): self._set_size,
                (lib.VIRTIO_PCI_COMMON_Q_MSIX, 2): self._set_queue_vector,
                (lib.VIRTIO_PCI_COMMON_Q_ENABLE, 2): self._enable,
                (lib.VIRTIO_PCI_COMMON_Q_RESET, 2): self._reset_queue,
                **{(field, 4): partial(self._set_address, field) for field in ADDRESSES},
            },
        )
        self._bar.attach(COMMON, PART, common)
        self._bar.attach(ISR, PART, Registers({(0, 1): self.interrupts.take_isr}, {}))
        self._bar.attach(DEVICE, PART, DeviceConfiguration(self.device))
        self._bar.attach(NOTIFY, PART, Notify(self.device))

    # Common configuration (4.1.4.3)

    def _select_device_word(self, word: int) -> None:
        self._device_word = word

    def _select_driver_word(self, word: int) -> None:
        self._driver_word = word

    def _select(self, index: int) -> None:
        self._selected = index

    def _accepted(self) -> int:
        word = self._driver_word
        return self.device.accepted >> 32 * word & 0xFFFF_FFFF if word < 4 else 0

    def _accept(self, bits: int) -> None:
        self.device.accept(self._driver_word, bits)

    def _slot(self) -> QueueSlot | None:
        """Return the selected queue, if there is one."""
        slots, selected = self.device.slots, self._selected
        return slots[selected] if selected < len(slots) else None

    def _of_slot(self, name: str) -> int:
        slot = self._slot()
        return 0 if slot is None else getattr(slot, name)

    def _set_size(self, size: int) -> None:
        selected = self._selected
        if selected < len(self.device.slots):
            self.device.set_size(selected, size)

    def _address(self, field: int) -> int:
        name, shift = ADDRESSES[field]
        slot = self._slot()
        return 0 if slot is None else getattr(slot.areas, name) >> shift & 0xFFFF_FFFF

    def _set_address(self, field: int, value: int) -> None:
        selected = self._selected
        if selected < len(self.device.slots):
            self.device.set_address(selected, *ADDRESSES[field], value)

    def _enable(self, value: int) -> None:
        selected = self._selected
        if value == 1 and selected < len(self.device.slots):  # 0 is not to be written
            self.device.enable_queue(selected)

    def _reset_queue(self, value: int) -> None:
        # Done when the store is: so both queue_reset and queue_enable read 0 from then on.
        selected = self._selected
        agreed = self.device.accepted & virtio.F_RING_RESET
        if value == 1 and agreed and selected < len(self.device.slots):
            self.device.reset_queue(selected)
            self.interrupts.assign(selected, NO_VECTOR)

    def _queue_vector(self) -> int:
        selected = self._selected
        known = selected < len(self.device.slots)
        return self.interrupts.assigned[selected] if known else NO_VECTOR

    def _set_queue_vector(self, vector: int) -> None:
        selected = self._selected
        if selected < len(self.device.slots):
            self.interrupts.assign(selected, vector)

    def _set_config_vector(self, vector: int) -> None:
        self.interrupts.assign(self._config_source, vector)

    def _set_status(self, value: int) -> None:
        self.device.write_status(value)
        if value == 0:
            self._device_word = self._driver_word = self._selected = 0
            self.interrupts.forget()

    # The host bridge's side

    def read_config(self, offset: int, size: int) -> int:
        """Return configuration space; the data of its access capability is in the BAR."""
        at = self._access_at + 16
        if at <= offset < at + 4 and (access := self._access()):
            self.config.set(at, 4, self._bar.read(*access))
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Take what is written to configuration space, or through it to the BAR."""
        master = self._is_master()
        super().write_config(offset, size, value)
        if master and not self._is_master() and self.device.live:
            # No DMA from now on: a kernel that starts another (kexec) does this to devices that
            # it leaves as they are, and the other resets them.
            self._set_status(0)
        at = self._access_at + 16
        if at <= offset < at + 4 and (access := self._access()):
            where, width = access
            self._bar.write(where, width, self.config.read(at, width))
        self._choose_interrupts()

    def _is_master(self) -> bool:
        return bool(self.config.read(lib.PCI_COMMAND, 2) & lib.PCI_COMMAND_MASTER)

    def _choose_interrupts(self) -> None:
        assert self.msix is not None
        self.interrupts.use_intx(use=not self.msix.enabled)

    def _access(self) -> tuple[int, int] | None:
        """Return where in the BAR the access capability points, and how many bytes it wants."""
        bar = self.config.read(self._access_at + lib.VIRTIO_PCI_CAP_BAR, 1)
        offset = self.config.read(self._access_at + lib.VIRTIO_PCI_CAP_OFFSET, 4)
        width = self.config.read(self._access_at + lib.VIRTIO_PCI_CAP_LENGTH, 4)
        lawful = bar == 0 and width in (1, 2, 4) and not offset % width
        return (offset, width) if lawful else None

    def reset(self) -> None:
        """Be as after power-on."""
        super().reset()
        self._choose_interrupts()
        self._set_status(0)

    # The machine's side

    def doorbells(self) -> list[Notification]:
        """Return what KVM can do of notifications."""
        return [
            Notification(NOTIFY + NOTIFY_STEP * index, slot.doorbell.fileno())
            for index, slot in enumerate(self.device.slots)
        ]

    def readers(self) -> Sequence[tuple[int, Callable[[], object]]]:
        """Return what the loop has to listen to, and what it then calls."""
        own = (self.interrupts.fileno(), self.interrupts.turn_into_intx)
        return [*self.device.readers(), own]

    def close(self) -> None:
        """Close the device and the interrupts. No VM and no loop may have them. Idempotent."""
        self.device.close()
        self.interrupts.close()


class Registers:
    """Fields, by offset and size; what is accessed otherwise reads as zero and is dropped."""

    def __init__(
        self,
        loads: dict[tuple[int, int], Callable[[], int]],
        stores: dict[tuple[int, int], Callable[[int], None]],
    ) -> None:
        self._loads = loads
        self._stores = stores

    def read(self, offset: int, size: int) -> int:
        """Return a field."""
        load = self._loads.get((offset, size))
        return 0 if load is None else load()

    def write(self, offset: int, size: int, value: int) -> None:
        """Take what the driver stored to a field."""
        store = self._stores.get((offset, size))
        if store is not None:
            store(value)


class DeviceConfiguration:
    """The device's own configuration, as a bus device."""

    def __init__(self, device: VirtioDevice) -> None:
        self.read = device.read_config
        self._device = device

    def write(self, offset: int, size: int, value: int) -> None:
        """Take what the driver wrote."""
        self._device.write_config(offset, value.to_bytes(size, "little"))


class Notify:
    """The notification structure: what KVM does for us, if it was asked to."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """Return nothing: it is there to be written."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Ring the doorbell of the queue whose address this is."""
        index, within = divmod(offset, NOTIFY_STEP)
        if not within and index < len(self._device.slots):
            self._device.slots[index].doorbell.ring()
