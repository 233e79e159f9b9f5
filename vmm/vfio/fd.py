"""Owning one of VFIO's file descriptors, and the one door through which their ioctls go."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.errors import HostError, KernelError
from vmm.kvm.fd import Fd
from vmm.vfio.causes import likely_cause

if TYPE_CHECKING:
    from enum import IntEnum
    from pathlib import Path

NODE_HINTS: Final = {
    errno.ENOENT: "is the module loaded? modprobe vfio-pci (and iommufd)",
    errno.ENODEV: "is the module loaded? modprobe vfio-pci (and iommufd)",
    errno.EACCES: "you may not: run as root, or have it given to you (chown, or a udev rule)",
    errno.EBUSY: "another program has it open; a device or group belongs to one at a time",
    errno.EPERM: "the sandbox or container you are in forbids it",
}


class VfioError(KernelError):
    """VFIO refused something: what, of which file, with what arguments, and why that is likely."""

    def __init__(
        self, name: str, request: IntEnum | str, errno: int, shown: dict[str, object]
    ) -> None:
        arguments = ", ".join(
            f"{key}={value:#x}" if isinstance(value, int) and value > 9 else f"{key}={value}"
            for key, value in shown.items()
        )
        call = request if isinstance(request, str) else request.name
        super().__init__(f"{name}: {call}({arguments})", errno, likely_cause(request, errno))
        self.request = call


class VfioFd(Fd):
    """A descriptor of VFIO's or of iommufd's; *name* says in errors which."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd)
        self.name = name

    def ioctl(self, request: IntEnum, arg: int = 0, **shown: object) -> int:
        """Issue *request* and return its result.

        *shown* is what an error shows as the arguments. Raises `VfioError`.
        """
        result: int = lib.pyvmm_ioctl(self.fileno(), request, arg)
        if result < 0:
            raise VfioError(self.name, request, -result, shown)
        return result

    def ioctl_struct(self, request: IntEnum, struct: str, **fields: Any) -> Any:
        """Issue *request* with ``struct`` *struct* made of *fields*; return the struct.

        Each starts with its own size, ``argsz`` or ``size``, filled in here. Raises `VfioError`.
        """
        arg = ffi.new(f"struct {struct} *", fields)
        ffi.cast("uint32_t *", arg)[0] = ffi.sizeof(arg[0])
        self.ioctl(request, int(ffi.cast("uintptr_t", arg)), **fields)
        return arg

    def ioctl_whole(self, request: IntEnum, struct: str, **fields: Any) -> bytes:
        """Issue *request* and return all of the answer: the struct and its capability chain.

        The kernel says in ``argsz`` how much room it needs, and is asked again with as much.
        Raises `VfioError`.
        """
        size = ffi.sizeof(f"struct {struct}")
        while True:
            room = ffi.new("char[]", size)
            arg = ffi.cast(f"struct {struct} *", room)
            for name, value in fields.items():
                setattr(arg, name, value)
            arg.argsz = size
            self.ioctl(request, int(ffi.cast("uintptr_t", arg)), **fields)
            if arg.argsz <= size:
                return bytes(ffi.buffer(room))
            size = arg.argsz


def open_node(path: Path, purpose: str) -> int:
    """Open a device node for reading and writing. Raises `HostError`, which says what to do."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = NODE_HINTS.get(error.errno or 0, "")
        raise HostError(f"cannot open {path} ({purpose}): {error.strerror}", hint) from error
