"""KVM's file descriptors: their error, and device attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm._native import ffi
from vmm.cause import FailedCall
from vmm.errors import KernelError
from vmm.fd import Fd
from vmm.kvm.causes import causes
from vmm.kvm.ioctls import Ioctl

if TYPE_CHECKING:
    from enum import IntEnum


class KvmError(KernelError):
    """KVM refused an ioctl: which, with what arguments, and the likely causes."""

    def __init__(
        self, request: IntEnum, errno: int, shown: dict[str, object], fd: KvmFd | None = None
    ) -> None:
        number, file = (-1, "") if fd is None else (fd.fileno(), type(fd).__name__)
        failed = FailedCall(request.name, errno, shown, number, file)
        super().__init__(str(failed), errno, causes=causes(failed))
        self.request = request
        self.arguments = shown


class KvmFd(Fd):
    """One of KVM's descriptors. Its ioctls raise `KvmError`."""

    def error(self, request: IntEnum, errno: int, shown: dict[str, object]) -> KvmError:
        """Return the error for *request*."""
        return KvmError(request, errno, shown, self)


class AttributeFd(KvmFd):
    """A descriptor with KVM device attributes: an in-kernel device, or an arm64 vCPU.

    Source: Documentation/virt/kvm/devices/.
    """

    def set_attr(self, group: int, attr: int, value: Any = None) -> None:
        """Set attribute *attr* of *group* to *value*: cdata that the kernel reads, or None.

        Raises `KvmError`.
        """
        self._attr(Ioctl.KVM_SET_DEVICE_ATTR, group, attr, value)

    def get_attr(self, group: int, attr: int, kind: str) -> int:
        """Return attribute *attr* of *group*, an integer of C type *kind*. Raises `KvmError`."""
        value = ffi.new(f"{kind} *")
        self._attr(Ioctl.KVM_GET_DEVICE_ATTR, group, attr, value)
        return int(value[0])

    def _attr(self, request: Ioctl, group: int, attr: int, value: Any) -> None:
        addr = 0 if value is None else int(ffi.cast("uintptr_t", value))
        self.ioctl_struct(request, "kvm_device_attr", group=group, attr=attr, addr=addr)
