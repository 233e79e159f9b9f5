"""Join the user's ends of streams to Unix sockets in a lab host: consoles, a network."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm import thread
from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.lab import protocol
from vmm.lab.relay import GRACE, pump

if TYPE_CHECKING:
    from vmm.lab.host.session import AgentClient


class End(Protocol):
    """Something of this machine that streams come from, one at a time."""

    def next(self, stop: int) -> int | None:
        """Wait for a stream; return a descriptor, which the caller owns. None: *stop* is readable.

        Raises OSError or HostError: there will be no more streams.
        """

    def left(self) -> None:
        """Note that the stream has ended."""


class Joint(NamedTuple):
    """An end, and the socket in the lab host that each of its streams goes to."""

    end: End
    path: str


class Relay(Closeable):
    """Pass on the streams of *joint*, in a thread. Does not own the end."""

    def __init__(self, agent: AgentClient, joint: Joint) -> None:
        self._agent = agent
        self._joint = joint
        self._stop, self._stopped = os.pipe()
        self._thread = thread.start("relay", self._run)

    def _run(self) -> None:
        with suppress(HostError, OSError):
            while (fd := self._joint.end.next(self._stop)) is not None:
                try:
                    self._pass_on(fd)
                finally:
                    os.close(fd)
                    self._joint.end.left()

    def _pass_on(self, fd: int) -> None:
        connection = self._agent.connect()
        try:
            connection.send(protocol.RELAY, json.dumps({"path": self._joint.path}).encode())
            if pump(connection, fd, protocol.INPUT, self._stop):
                connection.finish(GRACE)
        finally:
            connection.close()

    def close(self) -> None:
        """End the stream and the thread. Idempotent."""
        if self._stopped >= 0:
            os.close(self._stopped)  # the end of a pipe can be read
            self._stopped = -1
            self._thread.join()
            os.close(self._stop)
