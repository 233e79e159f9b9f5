"""The virtio-pci transport, modern only (VIRTIO 1.2, 4.1): a PCI function with one BAR.

    BAR 0   0x0000  common configuration
            0x1000  ISR status
            0x2000  the device's own configuration
            0x3000  notification, four bytes a queue
            0x4000  MSI-X table, 0x5000 its pending bits

Notifications and interrupts have eventfds that KVM can take: see `ioeventfds`, and
`vmm.virtio.transport.pci_interrupts`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.bus import MmioBus
from vmm.errors import HostError
from vmm.pci import capability
from vmm.pci.bar import Bar
from vmm.pci.function import INTA, Identity, PciFunction
from vmm.pci.msix import Msix
from vmm.virtio.notify import Ioeventfd
from vmm.virtio.state import PciState
from vmm.virtio.transport.pci_interrupts import NO_VECTOR, PciInterrupts
from vmm.virtio.transport.registers import HALVES, CommonRegisters, DeviceConfiguration, Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.pci.msix import MsiDelivery
    from vmm.virtio.device import VirtioDevice

VENDOR: Final = 0x1AF4
DEVICE_BASE: Final = 0x1040
"""The PCI device ID of virtio device type 0 (4.1.2)."""
REVISION: Final = 1
"""Non-transitional (4.1.2.1)."""

CLASSES: Final = {
    lib.VIRTIO_ID_NET: 0x02_00_00,
    lib.VIRTIO_ID_BLOCK: 0x01_80_00,
    lib.VIRTIO_ID_CONSOLE: 0x07_80_00,
}
"""Class codes by device type. Tools show them; drivers match the device ID."""
OTHER_CLASS: Final = 0xFF_00_00

PART: Final = 0x1000
"""Bytes for each structure: one page, so that a guest can pass structures on separately."""
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = range(0, 6 * PART, PART)
SIZE: Final = 0x8000

NOTIFY_STEP: Final = 4
"""Bytes between two queues' notification addresses (notify_off_multiplier)."""
NOTIFY_WIDTH: Final = 2
"""Bytes of a notification: the queue's number (4.1.5.2)."""

VECTORS_MAX: Final = PART // lib.PCI_MSIX_ENTRY_SIZE

ADDRESSES: Final = (
    lib.VIRTIO_PCI_COMMON_Q_DESCLO,
    lib.VIRTIO_PCI_COMMON_Q_DESCHI,
    lib.VIRTIO_PCI_COMMON_Q_AVAILLO,
    lib.VIRTIO_PCI_COMMON_Q_AVAILHI,
    lib.VIRTIO_PCI_COMMON_Q_USEDLO,
    lib.VIRTIO_PCI_COMMON_Q_USEDHI,
)
"""The fields of a queue's addresses, in the order of `HALVES`."""


class PciTransport(PciFunction):
    """Show *device* as a PCI function. Owns the device; *delivery* sends its MSI-X messages."""

    def __init__(self, device: VirtioDevice, delivery: MsiDelivery) -> None:
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
        self._common = CommonRegisters(device)
        queues = len(device.slots)
        count = min(queues + 1, VECTORS_MAX)
        self._config_source = queues
        self.interrupts = PciInterrupts(queues, count, delivery, self.set_intx)
        self._add_capabilities(Msix(count, delivery))
        self._add_registers()
        device.interrupts = self.interrupts

    # Capabilities and the BAR

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
        # Access through configuration space (4.1.4.9): BAR, offset, length; then the data.
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
        common = self._common
        halves = tuple(zip(ADDRESSES, HALVES, strict=True))
        fields = Fields(
            {
                (lib.VIRTIO_PCI_COMMON_DFSELECT, 4): lambda: common.device_word,
                (lib.VIRTIO_PCI_COMMON_DF, 4): common.offered,
                (lib.VIRTIO_PCI_COMMON_GFSELECT, 4): lambda: common.driver_word,
                (lib.VIRTIO_PCI_COMMON_GF, 4): common.accepted,
                (lib.VIRTIO_PCI_COMMON_MSIX, 2): lambda: self.interrupts.assigned[-1],
                (lib.VIRTIO_PCI_COMMON_NUMQ, 2): lambda: len(self.device.slots),
                (lib.VIRTIO_PCI_COMMON_STATUS, 1): lambda: self.device.status,
                (lib.VIRTIO_PCI_COMMON_CFGGENERATION, 1): lambda: self.device.generation & 0xFF,
                (lib.VIRTIO_PCI_COMMON_Q_SELECT, 2): lambda: common.selected,
                (lib.VIRTIO_PCI_COMMON_Q_SIZE, 2): self._size,
                (lib.VIRTIO_PCI_COMMON_Q_MSIX, 2): self._queue_vector,
                (lib.VIRTIO_PCI_COMMON_Q_ENABLE, 2): common.ready,
                (lib.VIRTIO_PCI_COMMON_Q_NOFF, 2): lambda: common.queue() or 0,
                **{(field, 4): partial(common.address, *half) for field, half in halves},
            },
            {
                (lib.VIRTIO_PCI_COMMON_DFSELECT, 4): common.select_device_word,
                (lib.VIRTIO_PCI_COMMON_GFSELECT, 4): common.select_driver_word,
                (lib.VIRTIO_PCI_COMMON_GF, 4): common.accept,
                (lib.VIRTIO_PCI_COMMON_MSIX, 2): self._set_config_vector,
                (lib.VIRTIO_PCI_COMMON_STATUS, 1): self._set_status,
                (lib.VIRTIO_PCI_COMMON_Q_SELECT, 2): common.select_queue,
                (lib.VIRTIO_PCI_COMMON_Q_SIZE, 2): common.set_size,
                (lib.VIRTIO_PCI_COMMON_Q_MSIX, 2): self._set_queue_vector,
                (lib.VIRTIO_PCI_COMMON_Q_ENABLE, 2): self._enable,
                (lib.VIRTIO_PCI_COMMON_Q_RESET, 2): self._reset_queue,
                **{(field, 4): partial(common.set_address, *half) for field, half in halves},
            },
        )
        self._bar.attach(COMMON, PART, fields)
        self._bar.attach(ISR, PART, Fields({(0, 1): self.interrupts.take_isr}, {}))
        self._bar.attach(DEVICE, PART, DeviceConfiguration(self.device))
        self._bar.attach(NOTIFY, PART, Notify(common))

    # Common configuration (4.1.4.3)

    def _size(self) -> int:
        slot = self._common.slot()
        return 0 if slot is None else slot.size & 0xFFFF

    def _enable(self, value: int) -> None:
        if value == 1:  # the driver must not write 0 (4.1.4.3.2)
            self._common.enable()

    def _reset_queue(self, value: int) -> None:
        if value == 1 and (index := self._common.reset_queue()) is not None:
            self.interrupts.assign(index, NO_VECTOR)

    def _queue_vector(self) -> int:
        index = self._common.queue()
        return NO_VECTOR if index is None else self.interrupts.assigned[index]

    def _set_queue_vector(self, vector: int) -> None:
        if (index := self._common.queue()) is not None:
            self.interrupts.assign(index, vector)

    def _set_config_vector(self, vector: int) -> None:
        self.interrupts.assign(self._config_source, vector)

    def _set_status(self, value: int) -> None:
        self.device.write_status(value)
        if value == 0:
            self._common.reset()
            self.interrupts.forget()

    # The host bridge's side

    def read_config(self, offset: int, size: int) -> int:
        """Load from configuration space. The access capability's data is loaded from the BAR."""
        at = self._access_at + 16
        if at <= offset < at + 4 and (access := self._access()):
            self.config.set(at, 4, self._bar.read(*access))
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Store to configuration space, or through its access capability to the BAR."""
        master = self._is_master()
        super().write_config(offset, size, value)
        if master and not self._is_master() and self.device.live:
            # No DMA from now on. A kernel that starts another one (kexec) clears Bus Master Enable
            # of devices that it leaves as they are; the next kernel resets them.
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
        """Return offset in the BAR and length of the access capability; None if unlawful."""
        bar = self.config.read(self._access_at + lib.VIRTIO_PCI_CAP_BAR, 1)
        offset = self.config.read(self._access_at + lib.VIRTIO_PCI_CAP_OFFSET, 4)
        width = self.config.read(self._access_at + lib.VIRTIO_PCI_CAP_LENGTH, 4)
        lawful = bar == 0 and width in (1, 2, 4) and not offset % width
        return (offset, width) if lawful else None

    def state(self) -> PciState:
        """Return the state of the device, which is paused. Raises `HostError`."""
        assert self.msix is not None
        return PciState(
            self.device.state(),
            self._common.state(),
            self.config.contents(),
            self.msix.entries(),
            tuple(self.interrupts.assigned),
            self.interrupts.isr(),
        )

    def restore(self, state: PciState) -> None:
        """Take over *state*, in a VM whose interrupt controller has its own. Raises `HostError`."""
        try:
            self.restore_config(state.config, state.msix)
            self._choose_interrupts()
            self.interrupts.restore(state.vectors, state.isr)
        except ValueError as error:
            raise HostError(f"{self.name}: its state cannot be taken over: {error}") from error
        if self.host is not None:
            self.host.settle(self)
        self.device.restore(state.device)
        self._common.restore(state.selectors)

    def reset(self) -> None:
        """Return to the state after power-on."""
        super().reset()
        self._choose_interrupts()
        self._set_status(0)

    # The machine's side

    def ioeventfds(self) -> list[Ioeventfd]:
        """Return the stores that KVM can take: notifications; offsets are into BAR 0."""
        return [
            Ioeventfd(NOTIFY + NOTIFY_STEP * index, NOTIFY_WIDTH, slot.doorbell.fileno())
            for index, slot in enumerate(self.device.slots)
        ]

    def readers(self) -> Sequence[tuple[int, Callable[[], object]]]:
        """Return the descriptors that the loop polls, each with its callback."""
        own = (self.interrupts.fileno(), self.interrupts.turn_into_intx)
        return [*self.device.readers(), own]

    def close(self) -> None:
        """Close the device and the interrupts, which no VM and no loop may have. Idempotent."""
        self.device.close()
        self.interrupts.close()


class Notify:
    """The notification structure (4.1.4.4), for stores that KVM does not take."""

    def __init__(self, common: CommonRegisters) -> None:
        self._common = common

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """Return 0: the structure is only written."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Notify the queue whose address *offset* is."""
        index, within = divmod(offset, NOTIFY_STEP)
        if not within:
            self._common.notify(index)
