"""The stream of a live migration: frames of pages and of JSON on connected sockets.

Pages go between guest RAM and the socket in C (cdefs/migrate.c). A message is JSON with its kind in
``message``, at most `MOST_TEXT` bytes; all else is checked by `vmm.typed_json`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.dirty_pages import SHIFT
from vmm.errors import HostError, UserError
from vmm.state.migration_messages import NAMES, Failed, Round
from vmm.typed_json import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.memory import Region

MOST_TEXT: Final = 16 << 20
"""Bytes of a message, at most. 512 vCPUs with SVE take 11 MiB."""

PATIENCE: Final = 60
"""Seconds in which the peer has to send or take something."""

WRONG: Final = {
    lib.PYVMM_STREAM_KIND: "kind",
    lib.PYVMM_STREAM_COUNT: "count",
    lib.PYVMM_STREAM_SIZE: "size",
    lib.PYVMM_STREAM_OFFSET: "offset of a run",
    lib.PYVMM_STREAM_LENGTH: "length of a run",
}
"""The member of a frame at fault, by PYVMM_STREAM_*."""

ENDED: Final = {errno.EPIPE, errno.ECONNRESET, errno.ENODATA}
SILENT: Final = {errno.EAGAIN, errno.ETIMEDOUT}

T = TypeVar("T")


class Moved(NamedTuple):
    """What went through a channel: frames, bytes of pages by kind, bytes on the stream."""

    frames: int = 0
    raw: int = 0
    zero: int = 0
    wire: int = 0


def prepare(connection: socket.socket) -> None:
    """Let *connection* wait for its peer, for `PATIENCE` seconds at most.

    Its options last when it is passed to another process; a sealed one may not set them.
    """
    connection.settimeout(None)
    limit = struct.pack("ll", PATIENCE, 0)
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, limit)
    with suppress(OSError):  # TCP alone has it
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Channel(Closeable):
    """Own the connected stream socket *connection*, which was prepared; errors name *peer*.

    One thread at a time may send, and one receive. Raises `HostError` for a connection that fails,
    and `UserError` for what is no stream of pyvmm's; it names the member at fault.
    """

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self._socket = connection
        self._peer = peer
        self._moved = ffi.new("struct pyvmm_moved *")

    @property
    def moved(self) -> Moved:
        """What went through so far."""
        moved = self._moved
        return Moved(int(moved.frames), int(moved.raw), int(moved.zero), int(moved.wire))

    # --- messages -----------------------------------------------------------------------------

    def send(self, message: object) -> None:
        """Send *message*, one of `migration_messages`."""
        plain = {"message": NAMES[type(message)], **encode(message)}
        text = json.dumps(plain, separators=(",", ":")).encode()
        header = bytes(
            ffi.buffer(ffi.new("struct pyvmm_frame *", (lib.PYVMM_FRAME_TEXT, 0, len(text))))
        )
        try:
            self._socket.sendall(header + text)
        except OSError as error:
            raise self._lost(error.errno or 0) from error

    def receive(self, kind: type[T]) -> T:
        """Return the next message, which is a *kind*. Raises `HostError` if the peer has failed."""
        frame = ffi.new("struct pyvmm_frame *")
        self._read(ffi.buffer(frame))
        return self.message(frame, kind)

    def message(self, frame: Any, kind: type[T]) -> T:
        """Return the message of which *frame* is the header, and which is a *kind*."""
        if frame.kind != lib.PYVMM_FRAME_TEXT:
            raise UserError(f"{self._peer}: a frame of kind {frame.kind} where a message was due")
        if not 0 < frame.size <= MOST_TEXT:
            raise UserError(f"{self._peer}: size of a message: {frame.size} bytes")
        text = bytearray(frame.size)
        self._read(text)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._peer}: a message is not JSON: {error}") from error
        name = value.pop("message", None) if isinstance(value, dict) else None
        if name == NAMES[Failed]:
            failed = decode(Failed, value, f"{self._peer}: {name}")
            raise HostError(f"{self._peer}: {failed.because}", failed.remedy)
        if name != NAMES[kind]:
            raise UserError(f"{self._peer}: message: {name!r} where {NAMES[kind]!r} was due")
        return decode(kind, value, f"{self._peer}: {name}")

    def _read(self, into: Any) -> None:
        view = memoryview(into).cast("B")
        while view:
            try:
                done = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
            except OSError as error:
                raise self._lost(error.errno or 0) from error
            if not done:
                raise self._closed()
            view = view[done:]

    # --- pages ----------------------------------------------------------------------------------

    def send_pages(self, ram: Region, address: int, bitmap: Any, first: int, pages: int) -> None:
        """Send those of *pages* pages from page *first* on that are set in *bitmap*.

        *address* is the host's of *ram*; bit 0 of *bitmap*, ``uint64_t *``, is page *first*.
        """
        pointer = ffi.cast("uint8_t *", address)
        error = lib.pyvmm_send_pages(
            self._socket.fileno(), pointer, ram.size, SHIFT, bitmap, first, pages, self._moved
        )
        if error:
            raise self._lost(-error)

    def receive_pages(self, ram: Region, address: int, written: Any) -> Round:
        """Take the pages of a round into *ram*, and return its end.

        *address* is the host's of *ram*. Sets the bits of the pages in *written*, ``uint64_t *``.
        """
        next_ = ffi.new("struct pyvmm_frame *")
        pointer = ffi.cast("uint8_t *", address)
        error = lib.pyvmm_receive_pages(
            self._socket.fileno(), pointer, ram.size, SHIFT, next_, self._moved, written
        )
        if error in WRONG:
            raise UserError(
                f"{self._peer}: frame {self._moved.frames + 1}: its {WRONG[error]} is wrong "
                f"(kind {next_.kind}, count {next_.count}, size {next_.size})"
            )
        if error:
            raise self._lost(-error)
        return self.message(next_, Round)

    # --- the connection -------------------------------------------------------------------------

    def _closed(self) -> HostError:
        return HostError(f"{self._peer} has closed the connection")

    def _lost(self, number: int) -> HostError:
        if number in ENDED:
            return self._closed()
        if number in SILENT:
            return HostError(f"{self._peer} did nothing for {PATIENCE} s")
        return HostError(f"{self._peer}: the connection failed: {os.strerror(number)}")

    def interrupt(self) -> None:
        """Let all that waits for the peer fail. Thread-safe."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. No thread may use it. Idempotent."""
        self._socket.close()


def interrupt(channels: Sequence[Channel]) -> None:
    """Let all that waits for the peer, on any of *channels*, fail. Thread-safe."""
    for channel in channels:
        channel.interrupt()
