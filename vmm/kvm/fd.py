"""Owning one of KVM's file descriptors, and the one door through which ioctls go."""

from __future__ import annotations

import os
from typing import Any

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import KernelError
from vmm.kvm.causes import likely_cause
from vmm.kvm.ioctls import Ioctl


class KvmError(KernelError):
    """KVM refused an ioctl: which, with what arguments, and why that is likely."""

    def __init__(self, request: Ioctl, errno: int, shown: dict[str, object]) -> None:
        arguments = ", ".join(
            f"{name}={value:#x}" if isinstance(value, int) and value > 9 else f"{name}={value}"
            for name, value in shown.items()
        )
        super().__init__(f"{request.name}({arguments})", errno, likely_cause(request, errno))
        self.request = request
        self.arguments = shown


class Fd(Closeable):
    """Owns one file descriptor; use as a context manager.

    Closing replaces the number with -1 before it calls ``close(2)``: numbers are reused at
    once, so a stale one would reach somebody else's file, while -1 can only ever be EBADF.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the number, or -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor. Again does no harm."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def ioctl(self, request: Ioctl, arg: int = 0, **shown: object) -> int:
        """Issue *request* and return its result.

        *shown* is what an error shows as the arguments. Raises `KvmError`.
        """
        result: int = lib.pyvmm_ioctl(self._fd, request, arg)
        if result < 0:
            raise KvmError(request, -result, shown or {"arg": arg})
        return result

    def ioctl_struct(self, request: Ioctl, struct: str, **fields: Any) -> Any:
        """Issue *request* with ``struct`` *struct* made of *fields*; return the struct.

        Raises `KvmError`, which shows the fields.
        """
        arg = ffi.new(f"struct {struct} *", fields)
        self.ioctl(request, int(ffi.cast("uintptr_t", arg)), **fields)
        return arg


class AttributeFd(Fd):
    """A descriptor with KVM device attributes: a device, or an arm64 vCPU.

    Source: Documentation/virt/kvm/devices/.
    """

    def set_attr(self, group: int, attr: int, value: Any = None) -> None:
        """Set attribute *attr* of *group*; *value* is cdata that the kernel reads, or None.

        Raises `KvmError`.
        """
        self._attr(Ioctl.KVM_SET_DEVICE_ATTR, group, attr, value)

    def get_attr(self, group: int, attr: int, value: Any) -> None:
        """Have the kernel write attribute *attr* of *group* to the cdata *value*.

        Raises `KvmError`.
        """
        self._attr(Ioctl.KVM_GET_DEVICE_ATTR, group, attr, value)

    def has_attr(self, group: int, attr: int) -> bool:
        """Tell whether this kernel knows attribute *attr* of *group* here."""
        try:
            self._attr(Ioctl.KVM_HAS_DEVICE_ATTR, group, attr, None)
        except KvmError:
            return False
        return True

    def _attr(self, request: Ioctl, group: int, attr: int, value: Any) -> None:
        addr = 0 if value is None else int(ffi.cast("uintptr_t", value))
        self.ioctl_struct(request, "kvm_device_attr", group=group, attr=attr, addr=addr)
