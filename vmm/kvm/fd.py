"""KVM's file descriptors: their error, and device attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vmm._native import ffi
from vmm.cause import FailedCall
from vmm.errors import KernelError
from vmm.fd import Fd, Request
from vmm.kvm.causes import causes
from vmm.kvm.ioctls import Ioctl

if TYPE_CHECKING:
    from collections.abc import Callable


class KvmError(KernelError):
    """KVM refused an ioctl: which, with what arguments, and the likely causes."""

    def __init__(
        self, request: Request, errno: int, shown: dict[str, object], fd: KvmFd | None = None
    ) -> None:
        number, file = (-1, "") if fd is None else (fd.fileno(), type(fd).__name__)
        failed = FailedCall(request.name, errno, shown, number, file)
        super().__init__(str(failed), errno, causes=causes(failed))
        self.request = request
        self.arguments = shown


class IoctlRecorder(Protocol):
    """Who hears of each ioctl: `vmm.uapi.recorder.Recorder`."""

    def call(self, fd: KvmFd, request: Request, arg: Any, issue: Callable[[], int], /) -> int:
        """Make the call *issue*, and return its result."""

    def buffer(self, address: int, size: int, /) -> None:
        """Hear that the next attribute's value is at *address*, in *size* bytes."""


class KvmFd(Fd):
    """One of KVM's descriptors. Its ioctls raise `KvmError`."""

    recorder: ClassVar[IoctlRecorder | None] = None
    """Who hears of each ioctl of this process's, if anyone."""

    def try_ioctl(self, request: Request, arg: Any = 0) -> int:
        """Issue *request* and return its result, or a negative errno. *arg*: see `ioctl`."""
        if KvmFd.recorder is None:
            return super().try_ioctl(request, arg)
        issue = super().try_ioctl
        return KvmFd.recorder.call(self, request, arg, lambda: issue(request, arg))

    def error(self, request: Request, errno: int, shown: dict[str, object]) -> KvmError:
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
        if KvmFd.recorder is not None and value is not None:
            kind = ffi.typeof(value)
            KvmFd.recorder.buffer(addr, ffi.sizeof(value if kind.kind == "array" else kind.item))
        self.ioctl_struct(request, "kvm_device_attr", group=group, attr=attr, addr=addr)
