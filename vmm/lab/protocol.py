"""What the lab's client and the agent in the lab host say to each other, a connection per command.

A frame is a kind (1 byte), a length (4 bytes, big-endian) and that many bytes. The client opens
with HELLO (the host's token) and one request; the agent answers. For a command:

    client                                agent
      HELLO token
      RUN {argv, env, cwd, tty}
      INPUT bytes, INPUT "" (the end)       OUTPUT bytes, ERRORS bytes
      SIZE rows columns                     TAKEN n   (n bytes of input have reached the command)
      SIGNAL n                              EXIT status, or FAILED text: the command never ran

Input has a window: the client has at most WINDOW bytes under way that were not TAKEN, so the
agent can always read on and sees a SIGNAL behind input that the command does not read. Output
needs none: a client that can't write it stops reading, and TCP stops the agent.

This module is loaded in the lab host too: it imports next to nothing.
"""

from __future__ import annotations

import struct

VERSION = 2
"""Counts incompatible changes: a host that is kept up may be older than its client."""

HELLO = b"H"
RUN = b"R"
TREE = b"T"
"""Install a tree of Python code, a tar archive in INPUT frames; answered by EXIT."""
INPUT = b"I"
SIZE = b"W"
SIGNAL = b"S"
OUTPUT = b"O"
ERRORS = b"E"
TAKEN = b"A"
EXIT = b"X"
FAILED = b"F"

CHUNK = 64 * 1024
"""The most bytes either side puts into one frame."""
WINDOW = 2 * CHUNK
"""Twice this fits into the client's socket: sending input never blocks it."""
PORT = 1
"""The agent's TCP port inside the host, where nobody else listens."""

_HEADER = struct.Struct(">cI")
NUMBER = struct.Struct(">I")
DIMENSIONS = struct.Struct(">HH")

Frame = tuple[bytes, bytes]


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return one frame, as it is sent."""
    return _HEADER.pack(kind, len(payload)) + payload


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """The bytes that make no whole frame yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes that arrived; return the frames they completed."""
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return frames
