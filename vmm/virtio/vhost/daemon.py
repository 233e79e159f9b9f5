"""Programs that work for a machine: find them, start them, log what they say, end them.

Daemon --spawn--> program          gets SIGTERM when its thread here ends, however that ends
  |   <--stderr-- lines --> events
  '-- close: SIGTERM, after `GRACE` SIGKILL; its process group gets SIGKILL anyway
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections import deque
from contextlib import suppress
from threading import Event, Lock
from typing import TYPE_CHECKING, Final

from vmm import thread
from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.events import Events

GRACE: Final = 5.0
"""Seconds that a program gets to end by itself: it may have a disk's tables to write. What is not
flushed by then may be lost, as at a power loss."""

CHILDREN: Final = 2.0
"""Seconds for a program's children to be gone once they are killed."""

REMEMBERED: Final = 8
"""Lines of a program's output that are kept."""
LAST_WORDS: Final = 300
"""Characters of its last lines that an error message repeats."""

FIRST_FD: Final = 3
"""The number by which a program knows the first descriptor that it inherits."""

ENVIRONMENT: Final = (b"PATH", b"TMPDIR", b"LANG", b"LC_ALL", b"TZ")
"""What a program gets of this process's environment: the rest, keys and tokens among it, is not for
a process that a guest talks to."""

LONGEST_LINE: Final = 1000
"""Bytes of a line; the rest is dropped."""


def find(program: str, places: Sequence[str], *, package: str, what_for: str) -> str:
    """Return the path of *program*: from PATH, or else from one of *places*.

    Raises `HostError`, which names *what_for*, the option that needs it, and Debian's *package*.
    """
    if found := shutil.which(program):
        return found
    for place in places:
        path = f"{place}/{program}"
        if os.access(path, os.X_OK):
            return path
    raise HostError(
        f"{what_for}: needs {program}, which is not installed", f"apt-get install {package}"
    )


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


def _environment() -> Iterator[tuple[bytes, bytes]]:
    return ((name, os.environb[name]) for name in ENVIRONMENT if name in os.environb)


def _signal_name(number: int) -> str:
    """Return the signal's name, or its number: most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Daemon(Closeable):
    """A running program, sealed (cdefs/seal.c). Its standard input and output are /dev/null.

    events  gets each line of its standard error; not bounded, see `vmm.events.Bounded`
    fds     descriptors that it inherits, as numbers `FIRST_FD` and following
    on_end  called in a thread of the daemon's once the program ended, unless `close` ended it

    Raises `HostError` if it cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        events: Events,
        *,
        fds: Sequence[int] = (),
        on_end: Callable[[], object] | None = None,
    ) -> None:
        self.name = os.path.basename(argv[0])  # noqa: PTH119  (pathlib is dear in a lab host)
        self._argv = list(argv)
        self._events = events
        self._fds = list(fds)
        self._on_end = on_end
        self._said: deque[str] = deque(maxlen=REMEMBERED)
        self._closing = False
        self._error = 0
        self.pid = 0
        self._pidfd = -1
        self._lock = Lock()
        """Guards the pidfd's number and `_killed`: any thread may kill."""
        self._killed = False
        self.status: int | None = None
        """How the program ended: an exit status, or minus a signal's number."""
        self._started = Event()
        # PR_SET_PDEATHSIG (prctl(2)) acts when the thread ends that started the program. So that
        # thread has to last as long as the program.
        self._thread = thread.start(self.name, self._run)
        self._started.wait()
        if self._error:
            self._thread.join()
            raise HostError(f"cannot start {argv[0]}: {os.strerror(self._error)}")

    def _run(self) -> None:
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError as error:  # else the starting thread would wait for ever
            self._error = error.errno or 1
            self._started.set()
            return
        try:
            try:
                self.pid = self._spawn(theirs)
                self._pidfd = self._open_pid()
            except OSError as error:
                self._error = error.errno or 1
                return
            finally:
                os.close(theirs)
                self._started.set()
            self._events.emit("daemon-started", daemon=self.name, pid=self.pid)
            self._listen(ours)
        finally:
            os.close(ours)
        self._end_children()
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        self._await_children()
        if not self._closing:
            self._events.emit("daemon-ended", daemon=self.name, pid=self.pid, status=self.status)
            if self._on_end is not None:
                self._on_end()

    def _open_pid(self) -> int:
        """Return a pidfd of the process. Raises OSError, and has ended the process then."""
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise

    def _end_children(self) -> None:
        """Kill what the program started: its process group, as it was made a session leader.

        The program has ended but is not reaped, so its process ID cannot be anybody else's.
        """
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _await_children(self) -> None:
        """Wait for the end of the process group: it may have guest memory mapped."""
        deadline = time.monotonic() + CHILDREN
        while _group_lives(self.pid) and time.monotonic() < deadline:
            time.sleep(0.001)

    def _spawn(self, stderr: int) -> int:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            fds = [null, null, stderr, *self._fds]
            argv = [ffi.new("char[]", os.fsencode(word)) for word in self._argv]
            envp = [ffi.new("char[]", b"%s=%s" % pair) for pair in _environment()]
            path = ffi.new("char[]", os.fsencode(self._argv[0]))
            arrays = [ffi.new("char *[]", [*words, ffi.NULL]) for words in (argv, envp)]
            numbers = ffi.new("int[]", fds), ffi.new("int[]", len(fds))
            program = ffi.new(
                "struct pyvmm_program *",
                {
                    "path": path,
                    "argv": arrays[0],
                    "envp": arrays[1],
                    "fd_count": len(fds),
                    "fds": numbers[0],
                    "moved": numbers[1],
                },
            )
            pid = int(lib.pyvmm_spawn(program))
        finally:
            os.close(null)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def _listen(self, fd: int) -> None:
        """Read the program's output until it has ended; its children may still hold the pipe."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        os.set_blocking(fd, False)
        rest, ended, silent = b"", False, False
        while not ended:
            ended = any(ready == self._pidfd for ready, _ in poll.poll())
            data = None if silent else self._read(fd)
            if data == b"":
                silent = True
                poll.unregister(fd)
            *whole, rest = (rest + (data or b"")).split(b"\n")
            rest = rest[:LONGEST_LINE]
            if ended and rest:
                whole.append(rest)
            for line in whole:
                text = line[:LONGEST_LINE].decode(errors="backslashreplace").strip()
                if text:
                    self._said.append(text)
                    self._events.emit("daemon-said", daemon=self.name, line=text)

    @staticmethod
    def _read(fd: int) -> bytes | None:
        """Return what can be read: b"" at the end, None if there is nothing now."""
        with suppress(BlockingIOError):
            return os.read(fd, 1 << 16)
        return None

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return not self._thread.is_alive()

    def last_words(self) -> str:
        """Return how the program ended, with its last two lines, on one line."""
        if self.ended and self.status:
            how = f"status {self.status}" if self.status > 0 else _signal_name(-self.status)
            said = " ".join(list(self._said)[-2:])
            if len(said) > LAST_WORDS:
                said = f"...{said[-LAST_WORDS:]}"
            return f"{self.name} ended ({how}): {said}" if said else f"{self.name} ended ({how})"
        return f"{self.name} has ended" if self.ended else f"{self.name} runs"

    def wait(self, seconds: float) -> bool:
        """Wait for the program's end; tell whether it has ended."""
        self._thread.join(seconds)
        return self.ended

    def cancel_waits(self) -> None:
        """Kill the program, so that whoever waits for it goes on. Thread-safe; does not wait."""
        with self._lock:
            if self._killed or self.ended:
                return
            self._killed = True
            self._signal(signal.SIGKILL)
        self._events.emit("daemon-killed", daemon=self.name, pid=self.pid)

    def kill(self) -> None:
        """Kill the program. When this returns, it is gone."""
        with self._lock:
            self._signal(signal.SIGKILL)
        self._thread.join()

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Terminate the program, and kill it after `GRACE`. When this returns, it is gone.

        Idempotent.
        """
        self._closing = True
        with self._lock:
            self._signal(signal.SIGTERM)
        if not self.wait(GRACE):
            self.cancel_waits()
            self._thread.join()
        with self._lock:
            fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)
