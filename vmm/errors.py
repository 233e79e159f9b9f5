"""Every error that pyvmm raises on purpose, sorted by who must act: user, host or guest.

An error's text is one line: what went wrong and where, then, after a semicolon, what to do. The
command line prints that line and exits with the class's ``exit_code``.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.cause import sentence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.cause import Cause

EXIT_POWERED_OFF = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_HOST = 3
EXIT_GUEST = 4
EXIT_TIMEOUT = 124
"""What `pyvmm run --timeout` ends with, as timeout(1) does."""
EXIT_SIGNAL_BASE = 128
"""Added to the signal's number, as shells do. Quitting from the console counts as SIGINT."""


EXHAUSTED = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO)
)
"""What any system call may answer on a host that has run out of something, or whose disk fails."""


class VmmError(Exception):
    """The base of every error that pyvmm raises on purpose.

    *message* says what went wrong and where, *hint* what to do about it.
    """

    exit_code = EXIT_HOST

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UserError(VmmError):
    """A request that cannot be met: a bad option, file or machine description."""

    exit_code = EXIT_USER


class HostError(VmmError):
    """The host lacks something, refused something or failed."""

    exit_code = EXIT_HOST


class GuestError(VmmError):
    """The guest misbehaved. It never ends anything but the guest."""

    exit_code = EXIT_GUEST


class GuestAddressError(GuestError):
    """Part of [address, address + size) is not guest memory."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"{size} bytes at guest address {address:#x} are not guest memory")
        self.address = address
        self.size = size


class KernelError(HostError):
    """A system call failed: its name, its arguments and the likely causes."""

    def __init__(self, call: str, errno: int, hint: str = "", causes: Sequence[Cause] = ()) -> None:
        super().__init__(f"{call}: {os.strerror(errno)}", hint or sentence(causes))
        self.call = call
        self.errno = errno
        self.causes = tuple(causes)


@contextmanager
def host_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a `HostError` about *what*: descriptors or memory ran out."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{what}: {error.strerror or error}") from error
