"""Own file descriptors: close them once, issue their ioctls, signal and drain eventfds.

`Fd.ioctl` is the one door through which ioctls go. A failure names the ioctl, its arguments and
the likely cause. `vmm.kvm.fd` and `vmm.vfio.fd` differ in the error they raise.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vmm import cause
from vmm._native import ffi, lib
from vmm.cause import FailedCall
from vmm.closeable import Closeable
from vmm.errors import HostError, KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmm.cause import Table


class CallNumber(int):
    """The number of an ioctl that pyvmm does not know by itself, and its *name*."""

    name: str

    def __new__(cls, name: str, number: int) -> Self:
        """Return *number*, called *name*."""
        made = super().__new__(cls, number)
        made.name = name
        return made


Request = IntEnum | CallNumber
"""An ioctl: a number with a name."""


def open_node(path: str | Path, what: str, hints: Mapping[int, str], flags: int = 0) -> int:
    """Open a device node for reading and writing; return the descriptor.

    Raises `HostError`, which begins with *what*; *hints* says what to do, by errno.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
    except OSError as error:
        raise HostError(f"{what}: {error.strerror}", hints.get(error.errno or 0, "")) from error


class Fd(Closeable):
    """Own one file descriptor.

    `close` replaces the number with -1 before it calls close(2). The kernel reuses numbers at
    once, so a stale one could be another file; -1 can only be EBADF.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the number, or -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def error(self, request: Request, errno: int, shown: dict[str, object]) -> KernelError:
        """Return the error for *request*, which failed with *errno*."""
        failed = FailedCall(request.name, errno, shown, self._fd)
        return KernelError(str(failed), errno, causes=cause.find(failed, {}))

    def try_ioctl(self, request: Request, arg: Any = 0) -> int:
        """Issue *request* and return its result, or a negative errno. *arg*: see `ioctl`."""
        address = arg if isinstance(arg, int) else int(ffi.cast("uintptr_t", arg))
        return lib.pyvmm_ioctl(self._fd, request, address)

    def ioctl(self, request: Request, arg: Any = 0, /, **shown: object) -> int:
        """Issue *request* and return its result.

        *arg* is an integer, or cdata that the kernel reads or writes: a pointer or an array.
        An error shows *shown* as the arguments. Raises `KernelError`, of the class that `error`
        returns.
        """
        return self.checked(self.try_ioctl(request, arg), request, shown)

    def ioctl_value(self, request: Request, ctype: str, value: Any, /, **shown: object) -> Any:
        """Issue *request* with a new *ctype* that holds *value*; return the pointer to it.

        Raises as `ioctl` does.
        """
        arg = ffi.new(f"{ctype} *", value)
        self.ioctl(request, arg, **shown)
        return arg

    def ioctl_struct(self, request: Request, struct: str, /, **fields: Any) -> Any:
        """Issue *request* with ``struct`` *struct* made of *fields*; return the struct.

        An error shows the fields. Raises as `ioctl` does.
        """
        return self.ioctl_value(request, f"struct {struct}", fields, **fields)

    def checked(self, result: int, request: Request, shown: dict[str, object]) -> int:
        """Return *result* of *request*. Raises as `ioctl` does if it is a negative errno."""
        if result < 0:
            raise self.error(request, -result, shown)
        return result


class DeviceFile(Fd):
    """Own the open device node at *path*; errors name *option*. It does not block.

    Raises `HostError` if it cannot be opened.
    """

    module: ClassVar[str] = ""
    """The kernel module behind the node."""

    causes: ClassVar[Table] = {}
    """Causes of failed ioctls."""

    def __init__(self, path: str, option: str) -> None:
        super().__init__(-1)
        self.option = option
        hints = {
            errno.ENOENT: f"load its module: modprobe {self.module}",
            errno.ENODEV: f"load its module: modprobe {self.module}",
            errno.EACCES: "run as root, or as a user who may open it",
            errno.EPERM: "the sandbox or container you are in forbids it",
            errno.EMFILE: "raise the limit on open files (ulimit -n)",
        }
        self._fd = open_node(path, f"{option}: cannot open {path}", hints, os.O_NONBLOCK)

    def error(self, request: Request, errno: int, shown: dict[str, object]) -> KernelError:
        """Return the error, which begins with the option."""
        failed = FailedCall(request.name, errno, shown, self._fd)
        found = cause.find(failed, self.causes)
        return KernelError(f"{self.option}: {failed}", errno, causes=found)


class EventFd(Fd):
    """Own a new eventfd that does not block. Raises OSError if the host has no more."""

    def __init__(self) -> None:
        super().__init__(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def signal(self) -> None:
        """Add one. Never waits; thread-safe."""
        signal(self._fd)

    def drain(self) -> None:
        """Reset to zero. Does nothing once closed."""
        if self._fd >= 0:
            drain(self._fd)


def signal(eventfd: int) -> None:
    """Add one to an eventfd that somebody else owns and that does not block."""
    with suppress(BlockingIOError):  # the count is at its limit: signalled already
        os.eventfd_write(eventfd, 1)


def drain(eventfd: int) -> None:
    """Reset an eventfd to zero that somebody else owns and that does not block."""
    with suppress(BlockingIOError):
        os.eventfd_read(eventfd)
