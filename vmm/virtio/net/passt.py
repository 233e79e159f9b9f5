"""passt: translate the guest's packets to sockets of this user, so that no privilege is needed.

    guest --rings--> passt --sockets--> host and beyond          vhost-user, where passt knows it
    guest --rings--> threads of ours --stream--> passt --> ...   otherwise

passt gets one end of a pair of sockets, and ends when the other end is closed.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.vhost.daemon import FIRST_FD, Daemon, find
from vmm.virtio.vhost.service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config.net import Forward
    from vmm.events import Events
    from vmm.memory import GuestMemory

NOBODY: Final = "65534:65534"
"""User and group of a passt that root starts. By number: not every host has a name for them."""

SETTLING: Final = 0.5
"""Seconds in which passt finds out whether it can bind the ports that it is to forward."""


class Passt(Service):
    """Start passt for one connection at a time. Raises `HostError`.

    vhost_user  the connection carries vhost-user, which old versions do not know; else frames
    """

    def __init__(
        self,
        events: Events,
        *,
        what: str,
        forwards: Sequence[Forward] = (),
        mtu: int | None = None,
        vhost_user: bool = False,
    ) -> None:
        program = find("passt", (), package="passt", what_for=what)
        options = ["--vhost-user"] if vhost_user else []
        options += ["--mtu", str(mtu)] if mtu is not None else []
        options += ["--runas", NOBODY] if os.geteuid() == 0 else []
        for forward in forwards:
            flag = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
            options += [flag, f"{forward.host}:{forward.guest}"]

        def argv(fd: int) -> list[str]:
            return [program, "--foreground", "--quiet", "--fd", str(fd), *options]

        super().__init__(argv, events, what=what)

    def connect(self) -> socket.socket:
        """End the former process, start another, and return the connection to it."""
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._daemon = Daemon(self._argv(FIRST_FD), self._events, fds=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    def settle(self) -> None:
        """Raise `HostError` if passt ends soon, because it cannot do what it is asked."""
        if self._daemon is not None and self._daemon.wait(SETTLING):
            raise HostError(f"{self.what}: {self._daemon.last_words()}")


class StreamBackend(ThreadBackend):
    """Threads of ours, with *passt* at the other end of a stream. Owns *passt*.

    Each driver gets a process of its own.
    """

    def __init__(self, passt: Passt) -> None:
        super().__init__([-1], offers=0, stream=True)
        self._passt = passt
        self._socket: socket.socket | None = None
        try:
            self._connect()
            passt.settle()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        self._hang_up()
        self._socket = self._passt.connect()
        self._socket.settimeout(0.0)
        self._files = [self._socket.fileno()]
        self._forget_frames()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def start(self, features: int, memory: GuestMemory) -> None:
        """Start with a driver, and with a new passt, which knows of no other driver."""
        super().start(features, memory)
        self._connect()

    def ring_error(self, index: int) -> str:
        """Return why the ring's thread has ended."""
        if self._threads[index].result > 0:
            return f"{self._passt.what}: {self._passt.explain('hung up')}"
        return super().ring_error(index)

    def stop(self) -> None:
        """End passt."""
        super().stop()
        self._hang_up()
        self._passt.close()

    def close(self) -> None:
        """End threads and passt. Idempotent."""
        super().close()
        self._hang_up()
        self._passt.close()
