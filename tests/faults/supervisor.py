"""Let one system call of a piece of code fail, by seccomp's user notification.

A child process gets a filter (SECCOMP_RET_USER_NOTIF, seccomp_unotify(2)) and does its work. The
supervisor sees each watched system call of it, before the kernel does: it lets all go on but one,
which returns an error instead. What the child's own children do is not touched.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ARM64: Final = platform.machine() == "aarch64"
PATIENCE: Final = 15
"""Seconds that one piece of code may take: more is a finding."""

Errors = tuple[int, ...]
OPENS: Final = (errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EINTR)
NEW: Final = (errno.EMFILE, errno.ENOMEM)
MOVES: Final = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EAGAIN)


class Call(NamedTuple):
    """A system call's numbers on x86-64 and arm64, and how it may fail."""

    x86: int
    arm64: int
    errors: Errors

    @property
    def number(self) -> int:
        """Its number here."""
        return self.arm64 if ARM64 else self.x86


WATCHED: Final = {
    "accept4": Call(288, 242, (errno.EMFILE, errno.ENOMEM, errno.EINTR)),
    "bind": Call(49, 200, (errno.ENOMEM, errno.ENOSPC)),
    "clone3": Call(435, 435, (errno.EAGAIN, errno.ENOMEM)),
    "connect": Call(42, 203, (errno.EAGAIN, errno.EINTR)),
    "epoll_create1": Call(291, 20, NEW),
    "epoll_ctl": Call(233, 21, (errno.ENOMEM, errno.ENOSPC)),
    "epoll_pwait": Call(281, 22, (errno.EINTR,)),
    "epoll_wait": Call(232, 22, (errno.EINTR,)),
    "eventfd2": Call(290, 19, NEW),
    "fallocate": Call(285, 47, (errno.ENOSPC, errno.EIO, errno.EINTR)),
    "fcntl": Call(72, 25, (errno.EMFILE,)),
    "fdatasync": Call(75, 83, (errno.EIO, errno.ENOSPC, errno.EINTR)),
    "flock": Call(73, 32, (errno.EINTR, errno.ENOMEM)),
    "fsync": Call(74, 82, (errno.EIO, errno.ENOSPC, errno.EINTR)),
    "ftruncate": Call(77, 46, (errno.EIO, errno.ENOSPC, errno.EINTR)),
    "io_uring_enter": Call(426, 426, (errno.EINTR, errno.EAGAIN, errno.ENOMEM)),
    "io_uring_register": Call(427, 427, NEW),
    "io_uring_setup": Call(425, 425, NEW),
    "ioctl": Call(16, 29, (errno.ENOMEM, errno.EIO, errno.EINTR)),
    "listen": Call(50, 201, (errno.EIO,)),
    "lseek": Call(8, 62, (errno.EIO,)),
    "madvise": Call(28, 233, (errno.ENOMEM,)),
    "memfd_create": Call(319, 279, NEW),
    "mmap": Call(9, 222, (errno.ENOMEM,)),
    "newfstatat": Call(262, 79, (errno.ENOMEM, errno.EIO)),
    "openat": Call(257, 56, OPENS),
    "pipe2": Call(293, 59, NEW),
    "pread64": Call(17, 67, (errno.EIO, errno.EINTR)),
    "pwrite64": Call(18, 68, (errno.EIO, errno.ENOSPC, errno.EINTR)),
    "read": Call(0, 63, (errno.EIO, errno.EINTR)),
    "recvmsg": Call(47, 212, (errno.ENOMEM, errno.EINTR, errno.EAGAIN)),
    "sendmsg": Call(46, 211, (errno.ENOMEM, errno.EINTR, errno.EAGAIN)),
    "sendto": Call(44, 206, (errno.ENOMEM, errno.EINTR, errno.EAGAIN)),
    "socket": Call(41, 198, NEW),
    "socketpair": Call(53, 199, NEW),
    "timerfd_create": Call(283, 85, NEW),
    "write": Call(1, 64, MOVES),
    "writev": Call(20, 66, MOVES),
}
"""System calls by name."""

NUMBERS: Final = {each.number: name for name, each in WATCHED.items()}
EPOLL_CTL_ADD: Final = 1
MARK, NOTHING = WATCHED["lseek"].number, 0xFFFF_FFFF
"""A call that no code makes: to seek in descriptor -1."""
SMALL: Final = 1 << 21
"""Bytes: smaller private mappings are Python's own, of whose failures it makes MemoryError."""

AUDIT_ARCH: Final = 0xC00000B7 if ARM64 else 0xC000003E
SECCOMP: Final = 277 if ARM64 else 317
SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3
NOTIFY, ALLOW, CONTINUE = 0x7FC00000, 0x7FFF0000, 1
RECEIVE, SEND = 0xC0502100, 0xC0182101
PIDFD_GETFD: Final = 438
NOTIFICATION: Final = struct.Struct("=QII iIQ 6Q")
ANSWER: Final = struct.Struct("=QqiI")
PR_SET_NO_NEW_PRIVS: Final = 38
MAP_PRIVATE_ANONYMOUS: Final = 0x22

EVENTFD: Final = Path("anon_inode:[eventfd]")
libc: Final = ctypes.CDLL(None, use_errno=True)


class Fault(NamedTuple):
    """The watched call *number* (from 0), which has to be *call*, returns *error*."""

    number: int
    call: str
    error: int

    def __str__(self) -> str:
        return f"call {self.number}, {self.call}: {errno.errorcode[self.error]}"


class Outcome(NamedTuple):
    """What became of the code: the calls that may fail, and whether *fault* was given."""

    calls: list[str]
    status: int
    given: bool


def _instruction(code: int, yes: int, no: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _program(spared: int) -> bytes:
    """Return the filter: it notifies of what is watched, but for writes to descriptor *spared*."""
    load, equal, end = 0x20, 0x15, 0x06
    numbers = sorted(NUMBERS)
    write = WATCHED["write"].number
    body = [_instruction(load, 0, 0, 4), _instruction(equal, 1, 0, AUDIT_ARCH)]
    body += [_instruction(end, 0, 0, ALLOW), _instruction(load, 0, 0, 0)]
    body += [_instruction(equal, 0, 3, write), _instruction(load, 0, 0, 16)]
    body += [_instruction(equal, 0, 1, spared), _instruction(end, 0, 0, ALLOW)]
    body += [_instruction(load, 0, 0, 0)]
    for at, number in enumerate(numbers):
        body.append(_instruction(equal, len(numbers) - at, 0, number))
    body += [_instruction(end, 0, 0, ALLOW), _instruction(end, 0, 0, NOTIFY)]
    return b"".join(body)


def _install(spared: int) -> int:
    """Install the filter in this process; return the listener's descriptor. Raises OSError."""
    code = _program(spared)
    program = ctypes.create_string_buffer(code)
    described = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(program))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    listener = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, described)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


@contextmanager
def counted() -> Iterator[None]:
    """Let calls count, and fail, that are made meanwhile: the supervisor sees a mark."""

    def mark() -> None:
        with suppress(OSError):
            os.lseek(-1, 0, os.SEEK_CUR)

    mark()
    try:
        yield
    finally:
        mark()


def run(code: Callable[[], int], fault: Fault | None = None) -> Outcome:
    """Run *code* in a child process, with *fault*; its result is the child's exit status.

    Only what it does while `counted` counts. Raises TimeoutError if it does not end in `PATIENCE`
    seconds.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.close(readable)
            listener = _install(writable)
            os.write(writable, struct.pack("=i", listener))
            taken = select.poll()
            taken.register(writable, 0)
            taken.poll()  # until the supervisor has closed its end: then it has the listener
            os.close(listener)
            os.close(writable)
            status = code()
        finally:
            os._exit(status)
    os.close(writable)
    pidfd = os.pidfd_open(child)
    try:
        said = os.read(readable, 4)
        listener = _take(pidfd, said)
        os.close(readable)
        try:
            calls, given = _supervise(child, pidfd, listener, fault)
        finally:
            os.close(listener)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(pidfd)
    _, status = os.waitpid(child, 0)
    return Outcome(calls, os.waitstatus_to_exitcode(status), given)


def _take(pidfd: int, said: bytes) -> int:
    """Return the listener whose number the child has said. Raises OSError."""
    if len(said) < 4:
        raise OSError(errno.EPERM, "no user notification of seccomp here")
    (number,) = struct.unpack("=i", said)
    listener = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(listener)


def _supervise(
    child: int, pidfd: int, listener: int, fault: Fault | None
) -> tuple[list[str], bool]:
    """Let calls go on, but for *fault*, until the child ends."""
    calls: list[str] = []
    counts = given = False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(listener, select.POLLIN)
    limit = time.monotonic() + PATIENCE
    while True:
        left = limit - time.monotonic()
        ready = dict(poll.poll(max(0, left) * 1000))
        if not ready:
            raise TimeoutError(f"it hangs after {calls[-5:]}")
        if ready.get(listener, 0) & select.POLLIN:
            notice = bytearray(NOTIFICATION.size)
            try:
                fcntl.ioctl(listener, RECEIVE, notice)
            except OSError:  # a signal has ended the call, or the thread is gone
                continue
            identity, thread, _, number, _, _, *arguments = NOTIFICATION.unpack(notice)
            error = 0
            if number == MARK and arguments[0] & NOTHING == NOTHING:
                counts = not counts
            elif counts and _matters(child, thread, number, arguments):
                name = NUMBERS[number]
                if fault is not None and len(calls) == fault.number and name == fault.call:
                    given = _may_fail(child, arguments[0], fault)
                    error = fault.error if given else 0
                calls.append(name)
            try:
                answer = ANSWER.pack(identity, 0, -error, 0 if error else CONTINUE)
                fcntl.ioctl(listener, SEND, bytearray(answer))
            except OSError:
                continue
        elif pidfd in ready:
            return calls, given


def _may_fail(child: int, fd: int, fault: Fault) -> bool:
    """Return whether a call can have the fault: one that blocks has no EAGAIN."""
    if fault.error != errno.EAGAIN or fault.call in ("clone3", "io_uring_enter", "memfd_create"):
        return True
    with suppress(OSError):
        information = Path(f"/proc/{child}/fdinfo/{fd}").read_text()
        return bool(int(information.partition("flags:")[2].split()[0], 8) & os.O_NONBLOCK)
    return True


def _matters(child: int, thread: int, number: int, arguments: list[Any]) -> bool:
    """Return whether a call is one of the child's own that may fail."""
    match NUMBERS[number], arguments:
        case "mmap", (_, size, _, flags, _, _):
            if flags & MAP_PRIVATE_ANONYMOUS == MAP_PRIVATE_ANONYMOUS and size < SMALL:
                return False
        case "epoll_ctl", (_, operation, *_):
            if operation != EPOLL_CTL_ADD:
                return False  # needs no memory
        case (("read" | "write"), (fd, *_)):
            with suppress(OSError):
                # An eventfd that does not block has no error but EAGAIN.
                if Path(f"/proc/{child}/fd/{fd}").readlink() == EVENTFD:
                    return False
    return os.path.exists(f"/proc/{child}/task/{thread}")  # noqa: PTH110  (a hot path)
