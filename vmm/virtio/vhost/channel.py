"""One connection to a vhost-user back end: requests, replies, timeouts and malformed replies."""

from __future__ import annotations

import array
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.virtio.vhost import message
from vmm.virtio.vhost.message import HEADER, U64, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE: Final = 30.0
"""Seconds for one reply. A daemon takes milliseconds, on a busy emulated host seconds."""


class ChannelError(HostError):
    """The back end is gone, does not answer, or does not speak vhost-user: it is lost."""


class GoneError(ChannelError):
    """The back end closed the connection."""


class Channel(Closeable):
    """The front end of *connection*, which it owns. Not thread-safe.

    acknowledged  ask for a reply to each request (REPLY_ACK), so that a refusal is known at once
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._patience = PATIENCE
        self.acknowledged = False

    def fileno(self) -> int:
        """Return the descriptor. Between requests it is readable only once the back end is gone."""
        return self._connection.fileno()

    @property
    def ended(self) -> bool:
        """Whether the back end hung up, or sent something unasked. Only between requests."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request without a reply of its own; wait for REPLY_ACK's if that is on.

        Raises `ChannelError`.
        """
        self._send(request, payload, fds, message.NEED_REPLY if self.acknowledged else 0)
        if self.acknowledged:
            answer = self._receive(request)
            if len(answer) != U64.size:
                raise ChannelError(f"acknowledged {request.name} with {len(answer)} bytes")
            if U64.unpack(answer) != (0,):
                raise ChannelError(f"refused {request.name}")

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Return the reply to *request*. Raises `ChannelError`."""
        self._send(request, payload)
        return self._receive(request)

    def ask_number(self, request: Request) -> int:
        """Return the reply to *request*, a 64-bit number. Raises `ChannelError`."""
        answer = self.ask(request)
        if len(answer) != U64.size:
            raise ChannelError(f"answered {request.name} with {len(answer)} bytes")
        return int(U64.unpack(answer)[0])

    def _send(
        self, request: Request, payload: bytes, fds: Sequence[int] = (), flags: int = 0
    ) -> None:
        data = memoryview(HEADER.pack(request, message.VERSION | flags, len(payload)) + payload)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = time.monotonic() + self._patience
        try:
            while data:
                self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
                data = data[self._connection.sendmsg([data], rights) :]
                rights = []
        except TimeoutError:
            raise ChannelError(f"does not take {request.name}") from None
        except OSError as error:
            raise GoneError(f"is gone at {request.name}: {error.strerror}") from None

    def _receive(self, request: Request) -> bytes:
        deadline = time.monotonic() + self._patience
        header = self._read(HEADER.size, request, deadline)
        number, flags, size = HEADER.unpack(header)
        sort = flags & (message.VERSION_MASK | message.REPLY)
        if number != request or sort != message.VERSION | message.REPLY:
            raise ChannelError(
                f"answered {request.name} with request {number}, flags {flags:#x}: no vhost-user"
            )
        if size > message.PAYLOAD_MAX:
            raise ChannelError(f"answered {request.name} with {size} bytes")
        return self._read(size, request, deadline)

    def _read(self, size: int, request: Request, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part, fds, _, _ = socket.recv_fds(
                    self._connection, size - len(data), message.REGIONS_MAX
                )
            except TimeoutError:
                raise ChannelError(f"does not answer {request.name}") from None
            except OSError as error:
                raise GoneError(f"is gone at {request.name}: {error.strerror}") from None
            for fd in fds:  # no request of ours has a reply with descriptors
                os.close(fd)
            if not part:
                raise GoneError(f"is gone at {request.name}")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()
