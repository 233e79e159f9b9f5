"""The broker: the process that does for a machine what the machine, once sealed, cannot do.

    machine --SOCK_SEQPACKET: JSON, descriptors--> broker --vfork, exec--> daemons

It starts daemons and ends them, and pays debts: what the machine has borrowed or left outside
(a device bound to VFIO, a socket, an unfinished file) and has to give back or remove.

Before the guest runs, the machine says which commands it may want, and what it owes. `freeze` ends
that. From then on the broker starts nothing else and touches nothing else, whoever speaks for the
machine: a guest that has taken it over can make it start a daemon again, or give a device back.

It is forked while the machine has neither threads nor RAM. When the machine is gone, however that
came about, it ends the daemons, pays what is still owed, and ends. A daemon gets SIGTERM when the
broker ends.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import signal
import socket
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from vmm.broker import server, walls
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm.broker.server import Debt


class Broker(Closeable):
    """The machine's end: start a broker. Its methods are thread-safe. Raises `HostError`.

    debts  kinds of debts beside `server.DEBTS`, and what pays them
    """

    def __init__(self, debts: Mapping[str, Debt] | None = None) -> None:
        self.kinds = {*server.DEBTS, *(debts or {})}
        """Of debts that can be owed."""
        self.owner = os.getpid()
        """The process whose broker it is."""
        self.walls = True
        """Whether `enclose` puts up walls."""
        self._lock = Lock()
        self._held: list[Callable[[], object]] | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, server.DEAF)  # until it ignores them
        try:
            self.pid = os.fork()
            if not self.pid:
                server.serve(theirs, debts or {}, mask)
        except OSError as error:
            self._socket.close()
            theirs.close()
            raise _cannot_start(error) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self._pidfd = self.null = -1
        try:
            self._pidfd = os.pidfd_open(self.pid)
            self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            """/dev/null, for programs to read and write: a confined process opens nothing."""
        except OSError as error:
            self.close()
            raise _cannot_start(error) from error

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """Return a descriptor that is readable once the broker has ended."""
        return self._pidfd

    def _ask(self, op: str, fds: Sequence[int] = (), /, **request: Any) -> tuple[Any, list[int]]:
        """Send a request; return the answer, and the descriptors that came with it.

        Raises `HostError` if the broker has ended, and what the broker raises: OSError,
        `HostError`, `UserError`.
        """
        message = json.dumps({"op": op, **request}).encode()
        try:
            with self._lock:
                socket.send_fds(self._socket, [message], fds)
                data, got, _, _ = socket.recv_fds(self._socket, server.LONGEST, server.MOST_FDS)
        except OSError as error:
            # Its answer would be taken for the next request's. It clears away, and ends.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            raise HostError(f"the broker does not answer: {error.strerror}") from error
        if not data:
            raise HostError("the broker has ended", "was it killed?")
        answer = json.loads(data)
        if len(got) < answer["fds"]:  # the kernel leaves out what we have no room for
            for fd in got:
                os.close(fd)
            if op == "start":
                self._ask("reap", pid=answer["result"], kill=True)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        if "error" in answer:
            kind = UserError if "user" in answer else HostError
            raise kind(answer["error"], answer["hint"])
        return answer["result"], got

    def allow(self, argv: Sequence[str]) -> int:
        """Return the number by which *argv* can be started, even once frozen."""
        return int(self._ask("allow", argv=list(argv))[0][0])

    def enclose(self, argv: Sequence[str], files: Sequence[tuple[str, bool]]) -> tuple[int, str]:
        """Do as `allow` does, for a program behind walls; return the number, and "".

        files  what the program works on, by absolute names, and whether it writes: all it reaches

        If this host allows no walls, there are none, and the reason is returned instead of "".
        Raises OSError: a file cannot be had.
        """
        if not self.walls:
            return self.allow(argv), ""
        read = walls.libraries(argv[0])
        number, problem = self._ask("allow", argv=list(argv), read=read, files=list(files))[0]
        return int(number), problem

    def listener(self) -> tuple[socket.socket, int]:
        """Return a socket that is connected, and the one that listens: nobody else can connect.

        Raises OSError: no socket can be made in the directory for temporary files.
        """
        _, (ours, listening) = self._ask("listener")
        return socket.socket(fileno=ours), listening

    def start(self, command: int, fds: Sequence[int]) -> tuple[int, int]:
        """Start *command* with *fds* as its descriptors 0 and following; return pid and pidfd.

        Raises OSError.
        """
        pid, (pidfd,) = self._ask("start", fds, command=command)
        return pid, pidfd

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a daemon that is not reaped. Raises OSError."""
        self._ask("signal", pid=pid, number=number)

    def reap(self, pid: int) -> int:
        """End the children of daemon *pid*, which has ended; return its wait status.

        Nothing of it has guest memory mapped afterwards. Raises OSError.
        """
        return int(self._ask("reap", pid=pid)[0])

    def owe(self, kind: str, *arguments: str | int) -> int:
        """Tell of a debt; return its number."""
        return int(self._ask("owe", kind=kind, arguments=arguments)[0][0])

    def borrow(self, kind: str, *arguments: str | int) -> tuple[int, Any]:
        """Let the broker borrow something; return the debt's number, and what it got.

        Raises what borrowing raises: OSError, `HostError`, `UserError`.
        """
        number, got = self._ask("owe", kind=kind, arguments=arguments)[0]
        return int(number), got

    def pay(self, debt: int, *, asked: bool = True) -> None:
        """Pay a debt. Once: later calls do nothing. Raises OSError and `HostError`.

        asked  False: as it is paid when the machine has died
        """
        self._ask("pay", debt=debt, asked=asked)

    def offer(self, kind: str, *arguments: str, fds: Sequence[int] = ()) -> int:
        """Return the number of an errand (`errands.KINDS`) that can be done even once frozen."""
        return int(self._ask("offer", fds, kind=kind, arguments=arguments)[0])

    def do(self, errand: int, step: str, *arguments: str | int) -> tuple[Any, list[int]]:
        """Let a *step* of an errand be done; return the answer, and the descriptors with it.

        Raises OSError and `HostError`.
        """
        return self._ask("do", errand=errand, step=step, arguments=arguments)

    def hold(self) -> None:
        """Keep threads from starting until `freeze`: see `when_free`."""
        self._held = []

    def when_free(self, start: Callable[[], object]) -> None:
        """Call *start*, which starts a thread: now, or at `release` if threads are held."""
        if self._held is None:
            start()
        else:
            self._held.append(start)

    def freeze(self) -> None:
        """Allow no further command, debt and errand, for good."""
        self._ask("freeze")

    def release(self) -> None:
        """Start the threads that were held."""
        held, self._held = self._held or [], None
        for start in held:
            start()

    def close(self) -> None:
        """End the broker, which ends daemons and pays debts first. Idempotent."""
        if not self.closed:
            self._socket.close()
            for fd in (self._pidfd, self.null):
                if fd >= 0:
                    os.close(fd)
            atexit.unregister(self.close)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


_current: list[Broker] = []


def current(debts: Mapping[str, Debt] | None = None) -> Broker:
    """Return this process's broker; start it if there is none, or it belongs to a parent process.

    *debts* count only then. Raises `HostError`.
    """
    if not _current or _current[0].owner != os.getpid() or _current[0].closed:
        _current[:] = [Broker(debts)]
        atexit.register(_current[0].close)
    return _current[0]


def _cannot_start(error: OSError) -> HostError:
    return HostError(
        f"cannot start the broker: {error.strerror}",
        "it takes a process more (ulimit -u), two descriptors (ulimit -n), and /dev/null",
    )
