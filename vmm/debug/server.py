"""Where a gdb connects: a Unix socket, or a port of the loopback interface; one client at a time.

The machine stops at a client's first packet, not when somebody connects. A client that leaves
without a word is as good as one that detaches: breakpoints go, and the guest goes on.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.debug.debugger import Debugger
from vmm.debug.listener import listen
from vmm.debug.packet import Parser, Signal, frame
from vmm.debug.session import Session
from vmm.errors import VmmError
from vmm.events import Bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config.gdb import GdbConfig
    from vmm.events import Events
    from vmm.loop import Loop
    from vmm.machine.machine import Machine

CHUNK: Final = 4096
"""Bytes that are read at once."""

BACKLOG: Final = 256 << 10
"""Bytes that a client may leave unread: more than the longest answer. Then it is dropped."""


class Server(Closeable):
    """Serve *machine* to debuggers. Construct it before the machine runs. Raises `UserError`."""

    def __init__(self, config: GdbConfig, machine: Machine, loop: Loop, events: Events) -> None:
        self._machine = machine
        self._loop = loop
        self._events = Bounded(events)
        self._listener = listen(config)
        self._client: _Client | None = None
        self._debugger = Debugger(machine, loop, self._events)
        machine.watchers.append(self._debugger)
        machine.debugger = self._debugger
        if config.wait:
            self._debugger.stop()
        loop.add_reader(self._listener.socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.socket.accept()
        except OSError:  # it has gone again, or there are no descriptors left
            return
        if self._client is not None and not self._client.is_gone():
            self._events.emit("debugger-refused", why="another one is connected")
            connection.close()
            return
        if self._client is not None:
            self._client.close()
        connection.setblocking(False)  # noqa: FBT003  (the socket's own API)
        self._events.emit("debugger-connected")
        self._client = _Client(connection, self._loop, self._new_session, self._on_gone)

    def _new_session(self, client: _Client) -> Session:
        return Session(self._machine, self._debugger, client.send)

    def _on_gone(self, why: str) -> None:
        """Let the machine go on: the client has left."""
        self._client = None
        self._events.emit("debugger-left", why=why)
        try:
            self._debugger.detach()
        except VmmError as error:
            self._events.emit("debugger-failed", error=str(error))

    def close(self) -> None:
        """Tell the client that the machine has ended, and stop listening. Idempotent."""
        if self._client is not None:
            self._client.send(b"W00")
            self._client.close()
            self._client = None
        if self._listener.socket.fileno() >= 0:
            self._loop.remove_reader(self._listener.socket.fileno())
        self._listener.close()


class _Client(Closeable):
    """A client's connection: bytes to packets, and packets to bytes."""

    def __init__(
        self,
        connection: socket.socket,
        loop: Loop,
        new_session: Callable[[_Client], Session],
        on_gone: Callable[[str], None],
    ) -> None:
        self._socket = connection
        self._loop = loop
        self._new_session = new_session
        self._on_gone = on_gone
        self._parser = Parser()
        self._session: Session | None = None
        self._out = bytearray()
        self._last = b""
        loop.add_reader(connection.fileno(), self._read)

    def is_gone(self) -> bool:
        """Return whether the client has hung up; nothing is read."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _read(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(error.strerror or str(error))
            return
        if not data:
            self._drop("it hung up")
            return
        try:
            for item in self._parser.feed(data):
                self._take(item)
                if self._socket.fileno() < 0:
                    return
        except VmmError as error:
            self._drop(str(error))

    def _take(self, item: bytes | Signal) -> None:
        if item is Signal.NACK and self._last:
            self._write(self._last)
        elif item is Signal.BAD:
            self._write(b"-")
        elif item is Signal.INTERRUPT and self._session is not None:
            self._session.interrupt()
        elif isinstance(item, bytes):
            self._packet(item)

    def _packet(self, data: bytes) -> None:
        if self._session is None:
            self._session = self._new_session(self)
            self._session.begin()
        if not self._session.no_acks:
            self._write(b"+")
        self._session.packet(data)
        if self._session.left:
            self._drop("it detached")

    def send(self, data: bytes) -> None:
        """Send *data* as a packet."""
        self._last = frame(data)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        self._out += data
        if len(self._out) > BACKLOG:
            self._out.clear()
            self._loop.call_later(0, lambda: self._drop("it does not read"))
        self._flush()

    def _flush(self) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        if self._socket.fileno() < 0:
            return
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        except OSError:  # it has gone: a read says so
            self._out.clear()
        self._loop.remove_writer(self._socket.fileno())

    def _drop(self, why: str) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._on_gone(why)

    def close(self) -> None:
        """Hang up. Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
