"""seccomp: what the threads of a machine's process may ask of the kernel once it is sealed.

    a call that the policy does not know --SIGSYS--> cdefs/sandbox.c: it fails with EPERM
                                                        '--eventfd--> Teller: the loop hears of it

The policy, and why each call is in it, is cdefs/sandbox.toml; filters are made of it when pyvmm is
built. Nothing undoes a filter.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.fd import EventFd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.loop import Loop

MODES: Final = {
    "on": lib.PYVMM_SANDBOX_ON,
    "log": lib.PYVMM_SANDBOX_LOG,
    "off": lib.PYVMM_SANDBOX_OFF,
}
"""What --sandbox may be."""

THREADS: Final = {
    lib.PYVMM_THREAD_LOOP: "loop",
    lib.PYVMM_THREAD_VCPU: "vcpu",
    lib.PYVMM_THREAD_QUEUE: "queue",
    lib.PYVMM_THREAD_CONTROL: "control",
}
"""Names of the kinds of threads, as in the policy."""


class Denial(NamedTuple):
    """A call that the policy does not allow.

    call    its name, with the request of an ioctl; else with its number
    arguments  its six arguments, in hexadecimal: what a call does not have is what was there
    thread  the kind of thread that made it: loop, vcpu, queue or control
    """

    call: str
    arguments: tuple[str, ...]
    thread: str


class DeniedError(HostError):
    """A call that the policy does not allow was made, and refused."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(
            f"--sandbox: {denial.call} was refused in a {denial.thread} thread: this is a mistake "
            "in pyvmm, or a guest has taken it over",
            "if it is the former, --sandbox log shows all such calls, and does them",
        )
        self.denial = denial


def confine(mode: str) -> None:
    """Confine this process as *mode* says: on, log or off. It has one thread, the caller's.

    PR_SET_NO_NEW_PRIVS comes first. Raises `HostError`: the kernel has no seccomp filters.
    """
    if mode == "off":
        return
    if error := lib.pyvmm_sandbox(MODES[mode]):
        raise HostError(
            f"--sandbox: cannot install a seccomp filter: {os.strerror(-error)}",
            "boot a kernel with CONFIG_SECCOMP_FILTER, or leave it out with --sandbox off",
        )


def denials(first: int = 0) -> Iterator[Denial]:
    """Yield each call that was refused, or that ``log`` let through, once: from number *first*."""
    while (found := lib.pyvmm_sandbox_denial(first)) != ffi.NULL:
        yield Denial(
            _name(found.number, found.ioctl),
            tuple(map(hex, found.arguments)),
            THREADS[found.thread],
        )
        first += 1


def _name(number: int, request: int) -> str:
    """Return a system call's name; an ioctl's with its request."""
    name = ffi.string(lib.pyvmm_call_name(number)).decode() or f"system call {number}"
    if name != "ioctl":
        return name
    known = ffi.string(lib.pyvmm_ioctl_name(request)).decode()
    return f"ioctl({known or hex(request)})"


class Teller(Closeable):
    """Call *on_denial* in *loop*'s thread with each call that is refused, once.

    One at a time tells.
    """

    def __init__(self, loop: Loop, on_denial: Callable[[Denial], object]) -> None:
        self._loop = loop
        self._on_denial = on_denial
        self._told = 0
        self._eventfd = EventFd()
        loop.add_reader(self._eventfd.fileno(), self.tell)
        lib.pyvmm_sandbox_tell(self._eventfd.fileno())

    def tell(self) -> None:
        """Tell of what has not been told yet."""
        self._eventfd.drain()
        for denial in denials(self._told):
            self._told += 1
            self._on_denial(denial)

    def close(self) -> None:
        """Tell what is left, then nothing more. Idempotent."""
        if self._eventfd.fileno() < 0:
            return
        lib.pyvmm_sandbox_tell(-1)
        self.tell()
        with suppress(KeyError):
            self._loop.remove_reader(self._eventfd.fileno())
        self._eventfd.close()
