"""Programs that work for a machine: find them, start them, log what they say, end them.

Daemon --broker, spawn--> program          gets SIGTERM when the broker ends, however that ends
  |   <------stderr, lines--> events
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
from threading import Lock, current_thread
from typing import TYPE_CHECKING, Final

from vmm import broker, thread
from vmm.closeable import Closeable
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Thread

    from vmm.broker import Broker
    from vmm.events import Events

GRACE: Final = 5.0
"""Seconds that a program gets to end by itself: it may have a disk's tables to write. What is not
flushed by then may be lost, as at a power loss."""

REMEMBERED: Final = 8
"""Lines of a program's output that are kept."""
LAST_WORDS: Final = 300
"""Characters of its last lines that an error message repeats."""

FIRST_FD: Final = 3
"""The number by which a program knows the first descriptor that it inherits."""

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


def _signal_name(number: int) -> str:
    """Return the signal's name, or its number: most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Command:
    """A command line that the broker is told of, and so may start once the guest runs.

    chosen  the broker; None: this process's
    files   what the program works on, by absolute names, and whether it writes: it is put behind
            walls, where it reaches nothing else. None: it has none, or makes them itself

    Raises OSError: a file of *files* cannot be had.
    """

    def __init__(
        self,
        argv: Sequence[str],
        chosen: Broker | None = None,
        files: Sequence[tuple[str, bool]] | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.path = argv[0]
        self.broker = broker.current() if chosen is None else chosen
        self.open = ""
        """Why it has no walls, though it was to have them."""
        if files is None:
            self.number = self.broker.allow(argv)
        else:
            self.number, self.open = self.broker.enclose(argv, files)


class Daemon(Closeable):
    """A running program, sealed (cdefs/seal.c). Its standard input and output are /dev/null.

    events  gets each line of its standard error; not bounded, see `vmm.events.Bounded`
    fds     descriptors that it inherits, as numbers `FIRST_FD` and following
    on_end  called in a thread of the daemon's once the program ended, unless `close` ended it

    Raises `HostError` if it cannot be started.
    """

    def __init__(
        self,
        command: Command,
        events: Events,
        *,
        fds: Sequence[int] = (),
        on_end: Callable[[], object] | None = None,
    ) -> None:
        self.name = os.path.basename(command.path)  # noqa: PTH119  (pathlib is dear in a lab host)
        self._events = events
        self._on_end = on_end
        self._broker = command.broker
        self._said: deque[str] = deque(maxlen=REMEMBERED)
        self._rest = b""
        self._closing = False
        self._lock = Lock()
        """Guards `_killed`: any thread may kill."""
        self._killed = False
        self._looking = Lock()
        """Guards the output and the end: the daemon's thread looks at them, and who waits."""
        self._thread: Thread | None = None
        self.status: int | None = None
        """How the program ended: an exit status, or minus a signal's number; None: it runs."""
        try:
            self._output, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_start(command, error) from error
        try:
            every = [self._broker.null, self._broker.null, theirs, *fds]
            self.pid, self._pidfd = self._broker.start(command.number, every)
        except BaseException as error:
            os.close(self._output)
            if isinstance(error, OSError):
                raise _cannot_start(command, error) from error
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self._output, False)
        events.emit("daemon-started", daemon=self.name, pid=self.pid)
        try:
            self._broker.when_free(self._start_thread)
        except BaseException:
            self.close()
            raise

    def _start_thread(self) -> None:
        if self.status is None:
            self._thread = thread.start(self.name, self._watch)

    def _watch(self) -> None:
        while not self._look(None):
            pass
        if not self._closing and self._on_end is not None:
            self._on_end()

    def _look(self, seconds: float | None) -> bool:
        """Wait for output or the program's end; tell whether it has ended. None: for ever."""
        poll = select.poll()
        with self._looking:
            if self.status is not None:
                return True
            poll.register(self._pidfd, select.POLLIN)
            if self._output >= 0:
                poll.register(self._output, select.POLLIN)
        poll.poll(None if seconds is None else max(seconds, 0) * 1000)
        with self._looking:
            if self.status is None:
                self._take()
        return self.status is not None

    def _take(self) -> None:
        """Take what the program has said, and its end. Its children may still hold the pipe."""
        ended = bool(select.select([self._pidfd], [], [], 0)[0])
        data = b""
        if self._output >= 0:
            with suppress(BlockingIOError):
                data = os.read(self._output, 1 << 16)
                if not data:
                    self._hang_up()
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:LONGEST_LINE]
        if ended and not data:
            whole.append(self._rest)
        for line in whole:
            text = line[:LONGEST_LINE].decode(errors="backslashreplace").strip()
            if text:
                self._said.append(text)
                self._events.emit("daemon-said", daemon=self.name, line=text)
        if ended and not data:
            self._end()

    def _end(self) -> None:
        """Reap the program, whose output has been read, and end what it has started."""
        self._hang_up()
        try:
            status = os.waitstatus_to_exitcode(self._broker.reap(self.pid))
        except HostError:  # the broker has ended, and this with it
            status = -signal.SIGTERM
        os.close(self._pidfd)
        self._pidfd = -1
        if not self._closing:
            self._events.emit("daemon-ended", daemon=self.name, pid=self.pid, status=status)
        self.status = status

    def _hang_up(self) -> None:
        fd, self._output = self._output, -1
        if fd >= 0:
            os.close(fd)

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return self.status is not None

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
        deadline = time.monotonic() + seconds
        while not self._look(deadline - time.monotonic()) and time.monotonic() < deadline:
            pass
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
        self._signal(signal.SIGKILL)
        self._await()

    def _await(self) -> None:
        while not self._look(None):
            pass
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join()

    def _signal(self, number: int) -> None:
        with suppress(HostError):  # without a broker it has got SIGTERM already
            self._broker.signal(self.pid, number)

    def close(self) -> None:
        """Terminate the program, and kill it after `GRACE`. When this returns, it is gone.

        Idempotent.
        """
        self._closing = True
        self._signal(signal.SIGTERM)
        if not self.wait(GRACE):
            self.cancel_waits()
        self._await()


def _cannot_start(command: Command, error: OSError) -> HostError:
    return HostError(f"cannot start {command.path}: {error.strerror}")
