"""The protocol between the lab's client and the agent in a lab host: one connection per command.

A frame is a kind (1 byte), a length (4 bytes, big-endian) and that many bytes of payload. The
client opens with HELLO (the host's token) and requests: TREE for the vmm that the command needs,
then RUN; or RELAY. For a command:

    client (ClientSession)                agent (AgentSession)
      HELLO token
      TREE {name}                           EXIT 0, or TAKEN: the agent lacks the tree
      INPUT archive..., INPUT ""            EXIT 0 if it is there now
      RUN {argv, env, cwd, tree, tty}
      INPUT bytes, INPUT "" (the end)       OUTPUT bytes, ERRORS bytes
      SIZE rows columns                     TAKEN n   (n bytes of input have reached the command)
      SIGNAL n                              EXIT status, or FAILED text: the command never ran

Input has a window: at most WINDOW bytes that were not yet TAKEN are under way. So the agent never
has to stop reading, and receives a SIGNAL even behind input that the command does not read.
Output needs no window: a client that cannot write its output stops reading, and TCP stops the
agent.

For one stream between this machine and a Unix socket in the host (`vmm.lab.relay`), which is a
connection of its own, with the window of TCP:

      RELAY {path}
      INPUT bytes, INPUT "" (the end)       OUTPUT bytes, OUTPUT "" (the end)

Lab hosts load this module before they are up: it imports next to nothing.
"""

from __future__ import annotations

import struct
from socket import SHUT_WR

TYPE_CHECKING = False  # importing typing takes 50 ms in a lab host
if TYPE_CHECKING:
    import socket

VERSION = 4
"""Counts incompatible changes: a host that is kept up may be older than its client."""

HELLO = b"H"
RUN = b"R"
TREE = b"T"
"""Install a tree of Python code, a tar archive. More requests may follow."""
RELAY = b"U"
"""Connect this connection to a Unix socket in the host, once something listens there."""
INPUT = b"I"
SIZE = b"W"
SIGNAL = b"S"
OUTPUT = b"O"
ERRORS = b"E"
TAKEN = b"A"
EXIT = b"X"
FAILED = b"F"

CHUNK = 64 * 1024
"""The most payload bytes that either side puts into one frame."""
MOST = 16 << 20
"""The most payload bytes of any frame: a RUN has a command's arguments and environment."""
WINDOW = 2 * CHUNK
"""Bytes of input under way. Twice this fits into the client's socket: sending never blocks."""
PORT = 1
"""The agent's TCP port inside the host. Nobody else listens there."""

_HEADER = struct.Struct(">cI")
NUMBER = struct.Struct(">I")
"""The payload of SIGNAL, TAKEN and EXIT."""
DIMENSIONS = struct.Struct(">HH")
"""The payload of SIZE: rows, columns."""

Frame = tuple[bytes, bytes]
"""A frame's kind and payload."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return one frame in the form in which it is sent."""
    return _HEADER.pack(kind, len(payload)) + payload


class Frames:
    """Cut a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """The bytes that do not make a whole frame yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes that arrived; return the frames that they complete.

        Raises EOFError for a frame longer than `MOST`: nothing sound follows it.
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer, start)
            if length > MOST:
                raise EOFError
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return frames


class Connection:
    """Frames over a connected stream socket, at either end.

    *received* is what was read from the socket before, by another process.
    """

    def __init__(self, stream: socket.socket, received: bytes = b"") -> None:
        self.socket = stream
        self._frames = Frames()
        self.pending = self._frames.feed(received)
        """Frames that have arrived and that `next` has not returned yet."""

    def fileno(self) -> int:
        """Return the socket's descriptor, as `select` and `poll` ask for it."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.socket.close()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send one frame. Raises OSError."""
        self.socket.sendall(frame(kind, payload))

    def receive(self) -> list[Frame]:
        """Wait for bytes and return the frames that they complete, perhaps none.

        Raises EOFError if the other end is gone or makes no sense, TimeoutError if the socket has a
        timeout.
        """
        try:
            data = self.socket.recv(CHUNK)
        except (BlockingIOError, TimeoutError):
            raise
        except OSError:  # reset by the other end
            data = b""
        if not data:
            raise EOFError
        return self._frames.feed(data)

    def next(self) -> Frame:
        """Return one frame; wait for it if need be. Raises as `receive` does."""
        while not self.pending:
            self.pending = self.receive()
        return self.pending.pop(0)

    def finish(self, seconds: float) -> None:
        """End the sending side, and discard what still comes, for *seconds* at most.

        Closing a socket with unread input resets the connection: what was sent last would be lost.
        """
        self.socket.settimeout(seconds)
        try:
            self.socket.shutdown(SHUT_WR)
            while self.socket.recv(CHUNK):
                pass
        except OSError:  # reset, or too late
            pass

    @property
    def unread(self) -> bytes:
        """All bytes that were received and not returned, for another process to go on with."""
        return b"".join(frame(*each) for each in self.pending) + self._frames.rest
