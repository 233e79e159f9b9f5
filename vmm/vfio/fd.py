"""VFIO's and iommufd's file descriptors: their error, and structs that begin with their size."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from vmm import fd
from vmm._native import ffi
from vmm.cause import FailedCall
from vmm.errors import KernelError
from vmm.fd import Fd, Request
from vmm.vfio.causes import causes

if TYPE_CHECKING:
    from pathlib import Path

NODE_HINTS: Final = {
    errno.ENOENT: "is the module loaded? modprobe vfio-pci (and iommufd)",
    errno.ENODEV: "is the module loaded? modprobe vfio-pci (and iommufd)",
    errno.EACCES: "you may not: run as root, or have it given to you (chown, or a udev rule)",
    errno.EBUSY: "another program has it open; a device or group belongs to one at a time",
    errno.EPERM: "the sandbox or container you are in forbids it",
}


class VfioError(KernelError):
    """VFIO refused a call: on which file, with what arguments, and the likely causes.

    *fd* is the descriptor; -1: it is not known, or closed.
    """

    def __init__(
        self,
        name: str,
        request: Request | str,
        errno: int,
        shown: dict[str, object],
        fd: int = -1,
    ) -> None:
        self.request = request if isinstance(request, str) else request.name
        failed = FailedCall(self.request, errno, shown, fd)
        super().__init__(f"{name}: {failed}", errno, causes=causes(failed))


class VfioFd(Fd):
    """A descriptor of VFIO's or of iommufd's; *name* is its name in errors."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(number)
        self.name = name

    def error(self, request: Request, errno: int, shown: dict[str, object]) -> VfioError:
        """Return the error for *request*."""
        return VfioError(self.name, request, errno, shown, self._fd)

    def ioctl_struct(self, request: Request, struct: str, /, **fields: Any) -> Any:
        """Issue *request* with ``struct`` *struct* made of *fields*; return the struct.

        Its first field is its size, ``argsz`` or ``size``, and filled in here. Raises `VfioError`.
        """
        arg = ffi.new(f"struct {struct} *", fields)
        ffi.cast("uint32_t *", arg)[0] = ffi.sizeof(arg[0])
        self.ioctl(request, arg, **fields)
        return arg

    def ioctl_whole(self, request: Request, struct: str, **fields: Any) -> bytes:
        """Issue *request* and return all of the answer: the struct and its capability chain.

        The kernel writes the size it needs to ``argsz``; the call is repeated with that size.
        Raises `VfioError`.
        """
        size = ffi.sizeof(f"struct {struct}")
        while True:
            room = ffi.new("char[]", size)
            arg = ffi.cast(f"struct {struct} *", room)
            for name, value in fields.items():
                setattr(arg, name, value)
            arg.argsz = size
            self.ioctl(request, arg, **fields)
            if arg.argsz <= size:
                return bytes(ffi.buffer(room))
            size = arg.argsz


def open_node(path: Path, purpose: str) -> int:
    """Open one of VFIO's device nodes. Raises `HostError`, which says what to do."""
    return fd.open_node(path, f"cannot open {path} ({purpose})", NODE_HINTS)
