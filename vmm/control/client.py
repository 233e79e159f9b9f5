"""A client of a machine's control socket."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any, Final

import h11

from vmm.closeable import Closeable
from vmm.control.names import socket_of
from vmm.errors import HostError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

CHUNK: Final = 1 << 16


class Client(Closeable):
    """A connection to the machine that listens at *path*; *what* names it in errors.

    Raises `UserError`: nothing listens there. Every method raises `UserError` and `HostError` with
    what the machine answers, and `HostError` if it hangs up.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._what = what
        self._http = h11.Connection(h11.CLIENT)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                raise UserError(f"{what}: no such machine runs", "pyvmm ps lists them") from error
            raise UserError(f"{what}: {path}: {error.strerror}") from error

    @classmethod
    def of(cls, name: str) -> Client:
        """Connect to the machine *name*. Raises `UserError`: none runs."""
        return cls(socket_of(name), name)

    def ask(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
    ) -> Any:
        """Return the answer to a request: JSON values, or a text."""
        self._send(method, path, parameters or {}, fds)
        head = self._head()
        body = b"".join(self._data())
        if self._http.our_state is self._http.their_state is h11.DONE:  # it may hang up instead
            self._http.start_next_cycle()
        if head.status_code >= 400:
            raise self._error(head.status_code, body)
        content = dict(head.headers).get(b"content-type", b"")
        return json.loads(body) if content == b"application/json" else body.decode()

    def feed(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a feed until the machine hangs up."""
        self._send("GET", path, {}, ())
        head = self._head()
        if head.status_code >= 400:
            raise self._error(head.status_code, b"".join(self._data()))
        yield from self._data()

    def switch(self, path: str, protocol: str) -> tuple[socket.socket, bytes]:
        """Make the connection *protocol*; return its socket, and what has come of it already."""
        headers = [("Upgrade", protocol), ("Connection", "upgrade")]
        self._send("GET", path, {}, (), headers)
        head = self._head()
        if head.status_code != 101:
            raise self._error(head.status_code, b"".join(self._data()))
        return self._socket, self._http.trailing_data[0]

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the machine hangs up, which it does at its end.

        Raises `HostError` if it has not after *seconds*.
        """
        self._socket.settimeout(seconds)
        try:
            while self._socket.recv(CHUNK):
                """The machine has nothing to say any more."""
        except TimeoutError:
            raise HostError(f"{self._what} runs on after {seconds:g} s") from None
        except OSError:
            """It has hung up."""

    def _send(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, Any],
        fds: Sequence[int],
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        body = json.dumps(parameters).encode() if parameters else b""
        length = [("Content-Length", str(len(body)))] if body else []
        head = h11.Request(
            method=method, target=path, headers=[("Host", "pyvmm"), *length, *headers]
        )
        data = self._http.send(head) or b""
        data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        try:
            sent = socket.send_fds(self._socket, [data], fds) if fds else 0
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise HostError(f"{self._what}: {error.strerror}", "has it ended?") from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(CHUNK)
        except OSError:
            return b""

    def _event(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._receive())
        except h11.RemoteProtocolError as error:
            raise HostError(f"{self._what} hung up", "it has ended") from error
        return event

    def _head(self) -> h11.Response | h11.InformationalResponse:
        event = self._event()
        if isinstance(event, h11.InformationalResponse | h11.Response):
            return event
        raise HostError(f"{self._what} hung up", "it has ended")

    def _data(self) -> Iterator[bytes]:
        while isinstance(event := self._event(), h11.Data):
            yield bytes(event.data)

    def _error(self, status: int, body: bytes) -> UserError | HostError:
        found = json.loads(body)
        kind = UserError if status < 500 else HostError
        return kind(f"{self._what}: {found['error']}", found.get("hint", ""))

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._socket.close()
