"""A device's interrupts, and the eventfds that they signal."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.vfio.fd import VfioError
from vmm.vfio.ioctls import DeviceIoctl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.vfio.fd import VfioFd

NO_EVENTFD: Final = -1
"""In a list of eventfds: this vector signals nothing."""


class IrqIndex(IntEnum):
    """The kinds of interrupts of a PCI device; the last two are VFIO's own."""

    INTX = lib.VFIO_PCI_INTX_IRQ_INDEX
    MSI = lib.VFIO_PCI_MSI_IRQ_INDEX
    MSIX = lib.VFIO_PCI_MSIX_IRQ_INDEX
    ERR = lib.VFIO_PCI_ERR_IRQ_INDEX
    """The device has reported an uncorrectable error (PCIe AER)."""
    REQ = lib.VFIO_PCI_REQ_IRQ_INDEX
    """The host wants the device back: it is being unplugged, or its driver unbound."""


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """One kind of interrupt: its number of vectors, and VFIO_IRQ_INFO_* flags."""

    index: IrqIndex
    count: int
    flags: int

    @property
    def resizable(self) -> bool:
        """Whether vectors can be added while others are in use."""
        return not self.flags & lib.VFIO_IRQ_INFO_NORESIZE


class Irqs:
    """All interrupts of one device."""

    def __init__(self, device: VfioFd) -> None:
        self._device = device
        self._known: dict[IrqIndex, IrqInfo] = {}

    def info(self, index: IrqIndex) -> IrqInfo:
        """Return what VFIO says about *index*; the count is 0 if the device has none.

        VFIO is asked once. Raises `VfioError`.
        """
        if index not in self._known:
            self._known[index] = self._ask(index)
        return self._known[index]

    def _ask(self, index: IrqIndex) -> IrqInfo:
        request = DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO
        try:
            found = self._device.ioctl_struct(request, "vfio_irq_info", index=int(index))
        except VfioError as error:
            if error.errno != errno.EINVAL:  # ERR, of a device that is not PCIe
                raise
            return IrqInfo(index, 0, 0)
        return IrqInfo(index, found.count, found.flags)

    def signal(self, index: IrqIndex, eventfds: Sequence[int], start: int = 0) -> None:
        """Make vectors from *start* on signal *eventfds*. Raises `VfioError`.

        For MSI and MSI-X the first call fixes the number of vectors, unless `resizable`.
        """
        self._set(index, start, len(eventfds), lib.VFIO_IRQ_SET_ACTION_TRIGGER, eventfds)

    def disable(self, index: IrqIndex) -> None:
        """Stop signalling, and free the vectors. Raises `VfioError`."""
        self._set(index, 0, 0, lib.VFIO_IRQ_SET_ACTION_TRIGGER)

    def trigger(self, index: IrqIndex, start: int = 0, count: int = 1) -> None:
        """Signal the eventfds as if the device had interrupted. Raises `VfioError`."""
        self._set(index, start, count, lib.VFIO_IRQ_SET_ACTION_TRIGGER)

    def unmask(self, index: IrqIndex, start: int = 0, count: int = 1) -> None:
        """Let interrupts through; a pending one at once. Raises `VfioError`."""
        self._set(index, start, count, lib.VFIO_IRQ_SET_ACTION_UNMASK)

    def unmask_by(self, index: IrqIndex, eventfd: int) -> None:
        """Unmask when *eventfd* is signalled: KVM's resamplefd, for INTx. Raises `VfioError`."""
        self._set(index, 0, 1, lib.VFIO_IRQ_SET_ACTION_UNMASK, [eventfd])

    def _set(
        self,
        index: IrqIndex,
        start: int,
        count: int,
        action: int,
        eventfds: Sequence[int] | None = None,
    ) -> None:
        kind = lib.VFIO_IRQ_SET_DATA_NONE
        fixed = ffi.sizeof("struct vfio_irq_set")
        size = fixed
        if eventfds is not None:
            kind = lib.VFIO_IRQ_SET_DATA_EVENTFD
            size += ffi.sizeof("int32_t") * len(eventfds)
        whole = ffi.new("uint32_t[]", (size + 3) // 4)
        arg = ffi.cast("struct vfio_irq_set *", whole)
        arg.argsz = size
        arg.flags = kind | action
        arg.index = index
        arg.start = start
        arg.count = count
        if eventfds is not None:
            ffi.cast("int32_t *", arg.data)[0 : len(eventfds)] = list(eventfds)
        self._device.ioctl(
            DeviceIoctl.VFIO_DEVICE_SET_IRQS,
            whole,
            irq=index.name,
            flags=kind | action,
            start=start,
            count=count,
        )
