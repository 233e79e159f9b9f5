"""The broker's own process: what it takes, what it does, and how it cleans up.

Whoever speaks for the machine may be the guest that has taken it over. A message that makes no
sense is as good as the machine's end.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.broker import errands, program
from vmm.broker.walls import Walls
from vmm.errors import HostError, UserError, VmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import NoReturn


LONGEST: Final = 1 << 16
"""Bytes of a message."""
MOST_FDS: Final = 8
MOST_DAEMONS: Final = 256
"""That run at a time."""

GRACE: Final = 5.0
"""Seconds that daemons get to end when the machine has died: they may have a disk's tables to
write."""
CHILDREN: Final = 2.0
"""Seconds for a daemon's children to be gone once they are killed."""

DEAF: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
"""What is sent to the process group is for the machine, whose end the broker sees: by a terminal,
or SIGUSR2 by who wants a snapshot."""


class Debt(NamedTuple):
    """A kind of debts: what is done when one is paid, and when it is made."""

    pay: Callable[..., object]
    """Called with the arguments that it was owed with, and whether it was asked for (it was not if
    the machine has died)."""
    borrow: Callable[..., str | int | None] | None = None
    """Called with the arguments first. If it raises, nothing is owed. Its result is answered."""


def remove_socket(path: str, inode: int, asked: bool) -> None:  # noqa: ARG001, FBT001  (a debt)
    """Remove the socket at *path*, unless another file has its place now."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)  # noqa: PTH108  (text)


def publish_file(temporary: str, path: str, asked: bool) -> None:  # noqa: FBT001  (a debt)
    """Give the finished file *temporary* its name, or remove it if it is not finished."""
    if asked:
        os.replace(temporary, path)  # noqa: PTH105  (text)
    else:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108  (text)


DEBTS: Final[Mapping[str, Debt]] = {"socket": Debt(remove_socket), "file": Debt(publish_file)}


def serve(
    machine: socket.socket, debts: Mapping[str, Debt], mask: Iterable[signal.Signals | int]
) -> NoReturn:
    """Be the broker until the machine has gone. *mask*: the signals to block, but `DEAF`."""
    status = 1
    try:
        for number in DEAF:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(-1)
        # It is one of 0 to 2 if the machine was started without that.
        aside = fcntl.fcntl(machine.detach(), fcntl.F_DUPFD_CLOEXEC, 4)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        channel = os.dup2(aside, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        Server(socket.socket(fileno=channel), {**DEBTS, **debts}).run()
        status = 0
    finally:
        os._exit(status)


class Server:
    """What the broker knows, and what it does for each request."""

    def __init__(self, machine: socket.socket, debts: Mapping[str, Debt]) -> None:
        self._machine = machine
        self._kinds = debts
        self._commands: list[tuple[list[str], Walls | None]] = []
        self._debts: dict[int, tuple[Debt, list[str | int]]] = {}
        self._owed = 0
        self._errands: list[errands.Errand] = []
        self._daemons: set[int] = set()
        self._frozen = False
        self._operations: dict[str, Callable[..., tuple[Any, list[int]]]] = {
            "allow": self._allow,
            "freeze": self._freeze,
            "listener": self._listener,
            "start": self._start,
            "signal": self._signal,
            "reap": self._reap,
            "owe": self._owe,
            "pay": self._pay,
            "offer": self._offer,
            "do": self._do,
        }

    def run(self) -> None:
        """Answer requests until the machine hangs up; then clean up."""
        try:
            while self._serve_one():
                pass
        finally:
            self._clean_up()

    def _serve_one(self) -> bool:
        """Answer one request; tell whether there was one."""
        data, fds, _, _ = socket.recv_fds(self._machine, LONGEST, MOST_FDS)
        if not data:
            return False
        replied: list[int] = []
        try:
            answer, replied = self._answer(json.loads(data), fds)
            answer["fds"] = len(replied)
            socket.send_fds(self._machine, [json.dumps(answer).encode()], replied)
        finally:
            for fd in (*fds, *replied):
                os.close(fd)
        return True

    def _answer(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        do = self._operations[request.pop("op")]
        try:
            result, replied = do(fds, **request)
        except OSError as error:
            return {"errno": error.errno or 1, "error": error.strerror or str(error)}, []
        except HostError as error:
            return {"error": error.message, "hint": error.hint}, []
        except UserError as error:
            return {"error": error.message, "hint": error.hint, "user": True}, []
        return {"result": result}, replied

    def _check_thawed(self) -> None:
        if self._frozen:
            raise PermissionError(errno.EPERM, "the broker takes nothing new once the guest runs")

    def _allow(
        self,
        _fds: list[int],
        argv: list[str],
        read: Sequence[str] = (),
        files: Sequence[tuple[str, bool]] | None = None,
    ) -> tuple[tuple[int, str], list[int]]:
        self._check_thawed()
        walls, problem = None, ""
        if files is not None:
            walls = Walls(argv[0], read, files)
            try:
                os.waitpid(program.start([], [], walls), 0)
            except OSError as error:
                walls, problem = None, error.strerror or str(error)
        self._commands.append((argv, walls))
        return (len(self._commands) - 1, problem), []

    def _freeze(self, _fds: list[int]) -> tuple[None, list[int]]:
        self._frozen = True
        return None, []

    def _listener(self, _fds: list[int]) -> tuple[None, list[int]]:
        base = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
        directory = f"{base}/pyvmm-{os.urandom(8).hex()}"
        os.mkdir(directory, 0o700)  # noqa: PTH102  (text)
        try:
            ours, listening = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            with ours, listening:
                listening.bind(f"{directory}/socket")
                listening.listen(1)
                ours.connect(f"{directory}/socket")
                return None, [ours.detach(), listening.detach()]
        finally:
            with suppress(FileNotFoundError):
                os.unlink(f"{directory}/socket")  # noqa: PTH108  (text)
            os.rmdir(directory)  # noqa: PTH106  (text)

    def _start(self, fds: list[int], command: int) -> tuple[int, list[int]]:
        if len(self._daemons) >= MOST_DAEMONS:
            raise BlockingIOError(errno.EAGAIN, f"{MOST_DAEMONS} daemons run already")
        argv, walls = self._commands[command]
        pid = program.start(argv, fds, walls)
        self._daemons.add(pid)
        try:
            return pid, [os.pidfd_open(pid)]
        except OSError:
            os.kill(pid, signal.SIGKILL)
            self._end(pid)
            raise

    def _signal(self, _fds: list[int], pid: int, number: int) -> tuple[None, list[int]]:
        if pid in self._daemons:
            os.kill(pid, number)  # a child of ours that is not reaped: the number is its own
        return None, []

    def _reap(self, _fds: list[int], pid: int, *, kill: bool = False) -> tuple[int, list[int]]:
        if pid not in self._daemons:
            raise ChildProcessError(errno.ECHILD, "no such daemon")
        if kill:
            os.kill(pid, signal.SIGKILL)
            return self._end(pid), []
        if not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            raise BlockingIOError(errno.EAGAIN, "it runs")
        return self._end(pid), []

    def _owe(
        self, _fds: list[int], kind: str, arguments: list[str | int]
    ) -> tuple[tuple[int, str | int | None], list[int]]:
        self._check_thawed()
        debt = self._kinds[kind]
        got = debt.borrow(*arguments) if debt.borrow is not None else None
        self._owed += 1
        self._debts[self._owed] = debt, arguments
        return (self._owed, got), []

    def _pay(self, _fds: list[int], debt: int, *, asked: bool) -> tuple[None, list[int]]:
        if debt in self._debts:
            kind, arguments = self._debts.pop(debt)
            kind.pay(*arguments, asked)
        return None, []

    def _offer(self, fds: list[int], kind: str, arguments: list[str]) -> tuple[int, list[int]]:
        self._check_thawed()
        self._errands.append(errands.KINDS[kind](fds, *arguments))
        return len(self._errands) - 1, []

    def _do(
        self, _fds: list[int], errand: int, step: str, arguments: list[str | int]
    ) -> tuple[Any, list[int]]:
        known = self._errands[errand]
        if step not in known.steps:
            raise PermissionError(errno.EPERM, "that is no step of the errand")
        answer: tuple[Any, list[int]] = getattr(known, step)(*arguments)
        return answer

    def _end(self, pid: int) -> int:
        """Kill what daemon *pid*, which has ended, has started, and reap it; return its status."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        # It is not reaped yet, so its process group is not anybody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self._daemons.discard(pid)
        deadline = time.monotonic() + CHILDREN
        while _group_lives(pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        return status

    def _clean_up(self) -> None:
        for pid in self._daemons:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for pid in list(self._daemons):
            while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)
            self._end(pid)
        for debt, arguments in self._debts.values():
            with suppress(OSError, VmmError):
                debt.pay(*arguments, False)  # noqa: FBT003  (not asked)


def _group_lives(group: int) -> bool:
    """Tell whether a process of *group* runs. A zombie does not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib is dear in a lab host)
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                state, _, process_group = file.read().rpartition(b")")[2].split()[:3]
                if int(process_group) == group and state not in (b"Z", b"X"):
                    return True
    return False
