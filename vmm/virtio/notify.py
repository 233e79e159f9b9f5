"""Notifications between driver and device, each over an eventfd that KVM can have instead of us.

EventFd   the driver's store to QueueNotify (ioeventfd) --> whoever serves the queue
Interrupt  whoever used a chain --> the driver (irqfd)
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.fd import EventFd

USED: Final[int] = lib.VIRTIO_MMIO_INT_VRING
"""Interrupt status: the device used a chain. The ISR status of PCI has the same bits (4.1.4.5)."""

CONFIG: Final[int] = lib.VIRTIO_MMIO_INT_CONFIG
"""Interrupt status: the device's configuration changed, or it needs a reset."""


class Interrupt(EventFd):
    """An interrupt with its status: bits `USED` and `CONFIG`. Thread-safe, and C may raise it."""

    def __init__(self) -> None:
        super().__init__()
        self.c: Any = ffi.new("struct pyvmm_interrupt *", {"eventfd": self._fd})

    @property
    def status(self) -> int:
        """What was raised and not acknowledged."""
        return int(lib.pyvmm_interrupt_status(self.c))

    def raise_(self, bits: int) -> None:
        """Add *bits* to the status, then signal."""
        lib.pyvmm_interrupt_raise(self.c, bits)

    def acknowledge(self, bits: int) -> None:
        """Take *bits* from the status."""
        lib.pyvmm_interrupt_acknowledge(self.c, bits)

    def stand(self, bits: int) -> None:
        """Have *bits* in the status from now on, acknowledged or not; then C need not set them.

        Whoever used a chain, be it the kernel or another process, only signals the eventfd.
        """
        lib.pyvmm_interrupt_stand(self.c, bits)

    def clear(self) -> None:
        """Forget everything, as a reset does."""
        self.stand(0)
        self.acknowledge(USED | CONFIG)
        self.drain()

    def close(self) -> None:
        """Close it; from now on only the status is kept. Idempotent."""
        self.c.eventfd = -1  # the number may soon be another file's
        super().close()


class Ioeventfd(NamedTuple):
    """A store that KVM can take: of *width* bytes at *offset*; it adds one to eventfd *fd*.

    *datamatch* is the only value that counts; None: any does. See `vmm.kvm.vm.Vm.ioeventfd`.
    """

    offset: int
    width: int
    fd: int
    datamatch: int | None = None
