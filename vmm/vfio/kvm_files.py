"""Tell KVM which VFIO files its guest uses, by the VFIO pseudo device.

KVM learns of non-coherent DMA, and drivers learn of their VM if they need to. So KVM is told of a
file before the device is opened through it (Documentation/virt/kvm/devices/vfio.rst).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native import ffi, lib
from vmm.closeable import Closeable

if TYPE_CHECKING:
    from vmm.kvm.vm import Vm


class KvmFiles(Closeable):
    """The VFIO pseudo device of one VM; a VM has one at most. `with` closes it."""

    def __init__(self, vm: Vm) -> None:
        """Create it. Raises `KvmError`."""
        self._device = vm.create_device(lib.KVM_DEV_TYPE_VFIO)

    def add(self, fd: int) -> None:
        """Tell KVM of a device's file, or a group's; KVM keeps it open. Raises `KvmError`."""
        self._set(lib.KVM_DEV_VFIO_GROUP_ADD, fd)

    def remove(self, fd: int) -> None:
        """Make KVM release a file, unless it has released all. Raises `KvmError`."""
        if self._device.fileno() >= 0:
            self._set(lib.KVM_DEV_VFIO_GROUP_DEL, fd)

    def _set(self, attribute: int, fd: int) -> None:
        # KVM_DEV_VFIO_FILE, since Linux 6.6, is another name for KVM_DEV_VFIO_GROUP.
        self._device.set_attr(lib.KVM_DEV_VFIO_GROUP, attribute, ffi.new("int32_t *", fd))

    def close(self) -> None:
        """Make KVM release all files. Idempotent."""
        self._device.close()
