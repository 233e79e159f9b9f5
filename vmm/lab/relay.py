"""Pass one stream between a descriptor and a connection of the lab, at either end.

    user's program <--descriptor--> client ==connection==> agent <--Unix socket--> pyvmm in the host

Each end reads only what it can pass on, so TCP's window is the stream's. A connection carries one
stream: there is nothing to share a window with.

Lab hosts load this module: it imports next to nothing.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from contextlib import suppress

from vmm.lab import protocol

GRACE = 2.0
"""Seconds that the other end gets to close the connection after the stream."""
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Pump:
    """The state of one stream. *kind* is the kind of frame that this end sends."""

    def __init__(self, connection: protocol.Connection, fd: int, kind: bytes) -> None:
        self._connection = connection
        self._fd = fd
        self._kind = kind
        self._is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        self._to_peer = bytearray()
        """Frames that the connection has not taken yet."""
        self._to_fd = bytearray()
        self._fd_open = True
        """Whether the descriptor may still have input."""
        self._peer_open = True
        """Whether the other end's frame that ends its bytes has not come."""
        self._gone = False
        """Whether the other side of the descriptor is closed."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to pass on."""
        if self._to_peer:
            return False
        return self._gone or not (self._fd_open or self._peer_open or self._to_fd)

    def wanted(self) -> tuple[int, int]:
        """Return the events to wait for: of the connection and of the descriptor.

        -1: not even for a hang-up, which poll would report again and again.
        """
        connection = select.POLLOUT if self._to_peer else 0
        if self._peer_open and not self._to_fd:
            connection |= select.POLLIN
        if not self._peer_open and not self._to_fd:
            connection |= select.POLLRDHUP  # nothing is to come but the connection's end
        if self._gone or (self._to_peer and self._fd_open):
            return connection, -1
        descriptor = select.POLLIN if self._fd_open else 0
        if self._to_fd:
            descriptor |= select.POLLOUT
        return connection, descriptor

    def take(self, frames: list[protocol.Frame]) -> None:
        """Take frames from the other end."""
        for kind, payload in frames:
            if kind in (protocol.INPUT, protocol.OUTPUT):
                self._to_fd += payload
                self._peer_open &= bool(payload)
        if not self._peer_open:
            self._write()

    def serve(self, events: int) -> bool:
        """Act on *events* of the connection; return False if the other end has gone."""
        try:
            if events & select.POLLIN:
                self.take(self._connection.receive())
            elif events & (select.POLLRDHUP | _GONE):
                return False
            if events & select.POLLOUT:
                del self._to_peer[: self._connection.socket.send(self._to_peer)]
        except BlockingIOError:
            return True
        except (EOFError, OSError):
            return False
        return True

    def descriptor(self, events: int) -> None:
        """Act on *events* of the descriptor."""
        if events & select.POLLIN or (self._fd_open and events & _GONE):
            self._read()
        elif events & _GONE:
            self._gone = True
        if events & select.POLLOUT and not self._gone:
            self._write()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, protocol.CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open; somebody else may have it soon
            data = b""
            self._gone = True
        self._to_peer += protocol.frame(self._kind, data)
        self._fd_open = bool(data)

    def _write(self) -> None:
        try:
            while self._to_fd:
                del self._to_fd[: os.write(self._fd, self._to_fd)]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more; what they wrote may still be unread
            self._to_fd.clear()
        if not self._peer_open and self._is_socket:
            with suppress(OSError), socket.socket(fileno=os.dup(self._fd)) as stream:
                stream.shutdown(socket.SHUT_WR)


def pump(connection: protocol.Connection, fd: int, kind: bytes, stop: int = -1) -> bool:
    """Pass bytes both ways until both have ended, an end has gone, or *stop* can be read.

    *kind* is the kind of frame to send. Return whether it was not for *stop*. Closes neither.
    """
    os.set_blocking(fd, False)
    connection.socket.settimeout(0.0)
    state = _Pump(connection, fd, kind)
    pending, connection.pending = connection.pending, []
    state.take(pending)
    poll = select.poll()
    while not state.over:
        for number, events in zip((connection.fileno(), fd), state.wanted(), strict=True):
            with suppress(KeyError):
                poll.unregister(number)
            if events >= 0:
                poll.register(number, events)
        if stop >= 0:
            poll.register(stop, select.POLLIN)
        for number, events in poll.poll():
            if number == stop:
                return False
            if number == fd:
                state.descriptor(events)
            elif not state.serve(events):
                return True
    return True
