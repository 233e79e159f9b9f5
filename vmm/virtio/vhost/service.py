"""A vhost-user daemon of our own: one process for one connection, in a socket that nobody sees."""

from __future__ import annotations

import shutil
import socket
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.events import Bounded
from vmm.virtio.vhost.daemon import FIRST_FD, Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.events import Events

LAST_WORDS: Final = 2.0
"""Seconds for a daemon that hung up to end and to have said why."""


class Service(Closeable):
    """Starts *argv*, which is given the number of the socket that the program is to listen on.

    what  what messages call it: the option it is for
    fds   more descriptors that the program gets, after the socket
    """

    def __init__(
        self,
        argv: Callable[[int], Sequence[str]],
        events: Events,
        *,
        what: str,
        fds: Sequence[int] = (),
    ) -> None:
        self.what = what
        self._argv = argv
        self._events = Bounded(events)  # a guest's drivers start processes
        self._fds = fds
        self._daemon: Daemon | None = None

    def connect(self) -> socket.socket:
        """Start a process, and return a connection to it; ends the one before.

        Raises `HostError`.
        """
        self.close()
        # The daemons of the day listen. So that nobody else can connect, we do it before they
        # run, by a name in a directory of ours, which then goes.
        with ExitStack() as undo, ExitStack() as owned:
            try:
                ours = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                listener = owned.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                directory = tempfile.mkdtemp(prefix="pyvmm-")
                try:
                    listener.bind(f"{directory}/vhost-user")
                    listener.listen(1)
                    ours.connect(f"{directory}/vhost-user")
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                self._daemon = Daemon(
                    self._argv(FIRST_FD), self._events, fds=[listener.fileno(), *self._fds]
                )
            except OSError as error:
                where = error.filename or tempfile.gettempdir()
                raise HostError(
                    f"{self.what}: cannot make a socket in {where}: {error.strerror}",
                    "TMPDIR chooses another place",
                ) from error
            undo.pop_all()
        return ours

    @property
    def pid(self) -> int:
        """The process's id; 0 if none was started."""
        return self._daemon.pid if self._daemon is not None else 0

    def explain(self, problem: str) -> str:
        """Return *problem*, which somebody had with it, and what it says itself."""
        daemon = self._daemon
        if daemon is None:
            return problem
        daemon.wait(LAST_WORDS)
        if daemon.ended:
            return daemon.last_words()
        return f"{daemon.name} {problem}"

    @property
    def refused(self) -> bool:
        """Whether it ended by itself, as programs do that cannot do what they are asked."""
        daemon = self._daemon
        return daemon is not None and daemon.ended and (daemon.status or 0) > 0

    def kill(self) -> None:
        """End the process at once, if it runs."""
        if self._daemon is not None:
            self._daemon.kill()

    def cancel_waits(self) -> None:
        """Have the process killed, whoever waits for it. From any thread; never waits."""
        if (daemon := self._daemon) is not None:
            daemon.cancel_waits()

    def close(self) -> None:
        """End the process; it gets time to write what it has. Idempotent."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None
