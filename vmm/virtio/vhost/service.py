"""A vhost-user daemon: one process for one connection, over a socket that nobody else can reach."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.events import Bounded
from vmm.virtio.vhost.daemon import FIRST_FD, Command, Daemon

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from vmm.events import Events

STARTS: Final = 100
WITHIN: Final = 60.0
"""Processes that a device may start within so many seconds: its drivers can ask for them without
end, each reset for another."""

LAST_WORDS: Final = 2.0
"""Seconds that a daemon that hung up gets to print the reason and end."""


class Service(Closeable):
    """Start a daemon, at most one at a time.

    argv  returns the command line for the number of the socket that the program listens on
    what  the option, for messages
    fds   more descriptors that the program inherits, after the socket
    files  see `Command`

    Raises OSError: a file of *files* cannot be had.
    """

    def __init__(
        self,
        argv: Callable[[int], Sequence[str]],
        events: Events,
        *,
        what: str,
        fds: Sequence[int] = (),
        files: Sequence[tuple[str, bool]] | None = None,
    ) -> None:
        self.what = what
        self._command = Command(argv(FIRST_FD), files=files)
        self._events = Bounded(events)  # a guest's drivers can start processes without end
        self._fds = fds
        self._daemon: Daemon | None = None
        self._starts: list[float] = []

    def count(self) -> None:
        """Count a start. Raises `HostError` if there were too many of late."""
        now = time.monotonic()
        self._starts = [then for then in self._starts if now - then < WITHIN]
        if len(self._starts) >= STARTS:
            raise HostError(
                f"{self.what}: {STARTS} processes were started within {WITHIN:.0f} s",
                "its driver may be reset again later",
            )
        self._starts.append(now)

    def connect(self) -> socket.socket:
        """Start a process, and return a connection to it. Ends the process before.

        Raises `HostError`.
        """
        self.close()
        self.count()
        # These daemons listen; they do not connect.
        try:
            ours, listener = self._command.broker.listener()
        except OSError as error:
            where = tempfile.gettempdir()
            raise HostError(
                f"{self.what}: cannot make a socket in {where}: {error.strerror}",
                "TMPDIR chooses another place",
            ) from error
        try:
            self._daemon = Daemon(self._command, self._events, fds=[listener, *self._fds])
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(listener)
        return ours

    @property
    def notice(self) -> str | None:
        """What to tell the user: the program has no walls on this host."""
        if not self._command.open:
            return None
        program = os.path.basename(self._command.path)  # noqa: PTH119  (dear in a lab host)
        return (
            f"{self.what}: {program} runs without walls ({self._command.open}): a guest that "
            "breaks it reaches what you can reach"
        )

    @property
    def pid(self) -> int:
        """The process ID; 0 if no process was started."""
        return self._daemon.pid if self._daemon is not None else 0

    def explain(self, problem: str) -> str:
        """Return *problem* with the daemon's name, or its last words if it has ended."""
        daemon = self._daemon
        if daemon is None:
            return problem
        daemon.wait(LAST_WORDS)
        if daemon.ended:
            return daemon.last_words()
        return f"{daemon.name} {problem}"

    @property
    def refused(self) -> bool:
        """Whether the process ended by itself with an error: it cannot do what it was asked."""
        daemon = self._daemon
        return daemon is not None and daemon.ended and (daemon.status or 0) > 0

    def kill(self) -> None:
        """Kill the process, if it runs. When this returns, it is gone."""
        if self._daemon is not None:
            self._daemon.kill()

    def cancel_waits(self) -> None:
        """Kill the process, so that whoever waits for it goes on. Thread-safe; does not wait."""
        if (daemon := self._daemon) is not None:
            daemon.cancel_waits()

    def close(self) -> None:
        """End the process, which gets time to write what it has. Idempotent."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None
