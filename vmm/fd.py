"""Device nodes and their ioctls, with errors that say why: for all that is neither KVM nor VFIO."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, ClassVar, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError, KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import IntEnum

GENERAL: Final[dict[int, str]] = {
    errno.EBADF: "the descriptor is closed",
    errno.ENOTTY: "this kernel does not know the ioctl",
    errno.ENOMEM: "the host is out of memory",
    errno.EPERM: "not permitted: run as a user who may, or as root",
    errno.EACCES: "not permitted: run as a user who may, or as root",
}


class DeviceFile(Closeable):
    """Owns the open device node at *path*; *option* is what errors name.

    Raises `HostError`, which says what to do, if it cannot be opened.
    """

    module: ClassVar[str] = ""
    """The kernel module that is behind it."""

    causes: ClassVar[Mapping[tuple[str, int], str]] = {}
    """Why an ioctl, by name, is likely to have failed with an errno."""

    def __init__(self, path: str, option: str) -> None:
        self._fd = -1
        self.option = option
        hints = {
            errno.ENOENT: f"load its module: modprobe {self.module}",
            errno.ENODEV: f"load its module: modprobe {self.module}",
            errno.EACCES: "run as root, or as a user who may open it",
            errno.EPERM: "the sandbox or container you are in forbids it",
            errno.EMFILE: "raise the limit on open files (ulimit -n)",
        }
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise HostError(
                f"{option}: cannot open {path}: {error.strerror}", hints.get(error.errno or 0, "")
            ) from error

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def ioctl(self, request: IntEnum, arg: int = 0, **shown: object) -> int:
        """Issue *request* and return its result. *shown* is what errors show as its arguments.

        Raises `KernelError`.
        """
        result: int = lib.pyvmm_ioctl(self._fd, request, arg)
        return self.checked(result, request, shown)

    def ioctl_struct(self, request: IntEnum, ctype: str, value: Any, **shown: object) -> Any:
        """Issue *request* with a *ctype* made of *value*; return that. Raises `KernelError`."""
        arg = ffi.new(f"{ctype} *", value)
        self.ioctl(request, int(ffi.cast("uintptr_t", arg)), **shown)
        return arg

    def checked(self, result: int, request: IntEnum, shown: dict[str, object]) -> int:
        """Return *result*, unless it is a negative errno: raise `KernelError` for that."""
        if result < 0:
            arguments = ", ".join(
                f"{key}={value:#x}" if isinstance(value, int) and value > 9 else f"{key}={value}"
                for key, value in shown.items()
            )
            cause = self.causes.get((request.name, -result)) or GENERAL.get(-result, "")
            raise KernelError(f"{self.option}: {request.name}({arguments})", -result, cause)
        return result
