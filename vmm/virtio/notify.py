"""Notifications between driver and device, as eventfds that KVM can take (VIRTIO 1.2, 2.3).

doorbell   the driver's store to QueueNotify --ioeventfd--> whoever serves the queue
Interrupt  whoever used a buffer --irqfd--> the driver
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.fd import EventFd

USED: Final[int] = lib.VIRTIO_MMIO_INT_VRING
"""Interrupt status: the device used a buffer. PCI's ISR status has the same bits (4.1.4.5)."""

CONFIG: Final[int] = lib.VIRTIO_MMIO_INT_CONFIG
"""Interrupt status: the device's configuration changed, or it needs a reset."""


class Interrupt(EventFd):
    """An interrupt and its status, the bits `USED` and `CONFIG`. Thread-safe; C may raise it."""

    def __init__(self) -> None:
        super().__init__()
        self.c: Any = ffi.new("struct pyvmm_interrupt *", {"eventfd": self._fd})

    @property
    def status(self) -> int:
        """The bits that were raised and not acknowledged."""
        return int(lib.pyvmm_interrupt_status(self.c))

    def raise_(self, bits: int) -> None:
        """Set *bits* in the status, then signal the eventfd."""
        lib.pyvmm_interrupt_raise(self.c, bits)

    def acknowledge(self, bits: int) -> None:
        """Clear *bits* in the status."""
        lib.pyvmm_interrupt_acknowledge(self.c, bits)

    def stand(self, bits: int) -> None:
        """Keep *bits* set in the status from now on, whatever is acknowledged.

        Whoever uses a buffer, be it the kernel or another process, then only signals the eventfd.
        """
        lib.pyvmm_interrupt_stand(self.c, bits)

    def clear(self) -> None:
        """Clear the status and the eventfd, as a reset does."""
        self.stand(0)
        self.acknowledge(USED | CONFIG)
        self.drain()

    def close(self) -> None:
        """Close the eventfd; the status stays. Idempotent."""
        self.c.eventfd = -1  # the kernel may give the number to another file at once
        super().close()


class Ioeventfd(NamedTuple):
    """A store that KVM can take: *width* bytes at *offset* add one to eventfd *fd*.

    With *datamatch* only a store of that value counts. See `vmm.kvm.vm.Vm.ioeventfd`.
    """

    offset: int
    width: int
    fd: int
    datamatch: int | None = None
