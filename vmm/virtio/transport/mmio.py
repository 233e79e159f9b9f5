"""The virtio-mmio transport, version 2 (VIRTIO 1.2, 4.2): registers, one interrupt.

    0x000  identity, features, queues, notification, interrupt status, device status
    0x100  the device's own configuration

Stores to QueueNotify and the interrupt have eventfds that KVM can take (`ioeventfds`, `interrupt`),
so that neither costs an exit. The interrupt is an edge: it is raised anew for each reason. From
DRIVER_OK to reset, InterruptStatus says that buffers may have been used. Whoever used one, be it
the kernel or another process, only writes the eventfd, and acknowledging that bit does nothing.
InterruptStatus remembers a change of the configuration.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.fd import EventFd
from vmm.virtio import status
from vmm.virtio.notify import CONFIG, USED, Interrupt, Ioeventfd
from vmm.virtio.state import MmioState
from vmm.virtio.transport.registers import HALVES, CommonRegisters, DeviceConfiguration, Fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.virtio.device import VirtioDevice

SIZE: Final = 0x200
"""Bytes of guest physical address space: room for every device's configuration."""

MAGIC: Final = int.from_bytes(b"virt", "little")
VERSION: Final = 2
VENDOR: Final = int.from_bytes(b"pyvm", "little")

QUEUE_RESET: Final = 0x0C0
"""QueueReset (4.2.2), which <linux/virtio_mmio.h> lacks."""

WIDTH: Final = 4
"""Bytes of each register: an access of another size is not one (4.2.2.2)."""

NOWHERE: Final = 0xFFFF_FFFF
"""Each half of length and base of a shared memory region that does not exist (4.2.2)."""

ADDRESSES: Final = (
    lib.VIRTIO_MMIO_QUEUE_DESC_LOW,
    lib.VIRTIO_MMIO_QUEUE_DESC_HIGH,
    lib.VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    lib.VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    lib.VIRTIO_MMIO_QUEUE_USED_LOW,
    lib.VIRTIO_MMIO_QUEUE_USED_HIGH,
)
"""The registers of a queue's addresses, in the order of `HALVES`."""


class MmioTransport(Closeable):
    """Show *device* as registers; a bus device. Owns the device.

    A register is accessed by four aligned bytes (4.2.2.2). Other accesses read as zero and are
    dropped.
    """

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        with ExitStack() as undo:
            undo.callback(device.close)
            self.interrupt = undo.enter_context(Interrupt())
            self._unheard = EventFd()
            undo.pop_all()
        """Where KVM takes stores that need no action; nobody listens."""
        device.interrupts = self
        self._common = common = CommonRegisters(device)
        self._configuration = DeviceConfiguration(device)
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
        loads: dict[int, Callable[[], int]] = {
            **{offset: (lambda value=value: value) for offset, value in constant.items()},  # type: ignore[misc]
            lib.VIRTIO_MMIO_DEVICE_FEATURES: common.offered,
            lib.VIRTIO_MMIO_QUEUE_NUM_MAX: self._size_max,
            lib.VIRTIO_MMIO_QUEUE_READY: common.ready,
            lib.VIRTIO_MMIO_INTERRUPT_STATUS: lambda: self.interrupt.status,
            lib.VIRTIO_MMIO_STATUS: lambda: device.status,
            lib.VIRTIO_MMIO_CONFIG_GENERATION: lambda: device.generation & 0xFFFF_FFFF,
        }
        stores: dict[int, Callable[[int], object]] = {
            lib.VIRTIO_MMIO_DEVICE_FEATURES_SEL: common.select_device_word,
            lib.VIRTIO_MMIO_DRIVER_FEATURES_SEL: common.select_driver_word,
            lib.VIRTIO_MMIO_DRIVER_FEATURES: common.accept,
            lib.VIRTIO_MMIO_QUEUE_SEL: common.select_queue,
            lib.VIRTIO_MMIO_QUEUE_NUM: common.set_size,
            lib.VIRTIO_MMIO_QUEUE_READY: self._set_ready,
            lib.VIRTIO_MMIO_QUEUE_NOTIFY: common.notify,
            lib.VIRTIO_MMIO_INTERRUPT_ACK: self.interrupt.acknowledge,
            lib.VIRTIO_MMIO_STATUS: self._set_status,
            QUEUE_RESET: self._reset_queue,
            **{
                register: partial(common.set_address, *half)
                for register, half in zip(ADDRESSES, HALVES, strict=True)
            },
        }
        self._registers = Fields(
            {(offset, WIDTH): load for offset, load in loads.items()},
            {(offset, WIDTH): store for offset, store in stores.items()},
        )

    # The bus's side

    def read(self, offset: int, size: int) -> int:
        """Return a register, or *size* bytes of the device's configuration."""
        if offset >= lib.VIRTIO_MMIO_CONFIG:
            return self._configuration.read(offset - lib.VIRTIO_MMIO_CONFIG, size)
        return self._registers.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store *value* to a register, or to the device's configuration."""
        if offset >= lib.VIRTIO_MMIO_CONFIG:
            self._configuration.write(offset - lib.VIRTIO_MMIO_CONFIG, size, value)
        else:
            self._registers.write(offset, size, value)

    def _size_max(self) -> int:
        slot = self._common.slot()
        return 0 if slot is None else slot.size_max

    def _set_ready(self, ready: int) -> None:
        if ready & 1:
            self._common.enable()
        else:
            self._common.disable()

    def _reset_queue(self, value: int) -> None:
        if value & 1:
            self._common.reset_queue()

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._common.reset()
        if value & status.DRIVER_OK:
            self.interrupt.stand(USED)  # before any queue starts
        self.device.write_status(value)

    # The device's side (`vmm.virtio.device.TransportInterrupts`)

    def of_queue(self, queue: int) -> Interrupt:  # noqa: ARG002  (one interrupt for all)
        """Return the interrupt."""
        return self.interrupt

    def used(self, queue: int) -> None:  # noqa: ARG002
        """Interrupt: buffers were used."""
        self.interrupt.raise_(USED)

    def config_changed(self) -> None:
        """Interrupt: the configuration changed."""
        self.interrupt.raise_(CONFIG)

    def clear(self) -> None:
        """Clear the interrupt."""
        self.interrupt.clear()

    # The machine's side

    def ioeventfds(self) -> list[Ioeventfd]:
        """Return the stores that KVM can take: notifications, and acknowledging used buffers."""
        return [
            *(
                Ioeventfd(lib.VIRTIO_MMIO_QUEUE_NOTIFY, WIDTH, slot.doorbell.fileno(), index)
                for index, slot in enumerate(self.device.slots)
            ),
            Ioeventfd(lib.VIRTIO_MMIO_INTERRUPT_ACK, WIDTH, self._unheard.fileno(), USED),
        ]

    def state(self) -> MmioState:
        """Return the state of the device, which is paused. Raises `HostError`."""
        return MmioState(self.device.state(), self._common.state(), self.interrupt.status)

    def restore(self, state: MmioState) -> None:
        """Take over *state*, in a VM whose interrupt controller has its own. Raises `HostError`."""
        self.device.restore(state.device)
        self._common.restore(state.selectors)
        if state.device.status & status.DRIVER_OK:
            self.interrupt.stand(USED)
        if state.interrupt & CONFIG:
            self.interrupt.raise_(CONFIG)

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._set_status(0)

    def close(self) -> None:
        """Close the device and the interrupt. Idempotent."""
        self.device.close()
        self.interrupt.close()
        self._unheard.close()
