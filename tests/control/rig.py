"""A control server without a machine: its requests are answered in a loop of their own thread."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.recorded import Recorded
from vmm.control.feeds import HeardEvents
from vmm.control.routes import Call, Parameter, Route
from vmm.control.server import Server
from vmm.errors import HostError, UserError
from vmm.loop import Loop

PATIENCE = 20.0


@dataclass(frozen=True)
class Sum:
    """What the requests of the rig give."""

    asked: int
    text: str


class Rig:
    """A server at *path*, whose `gate` keeps the loop that answers from going on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recorded = Recorded()
        self.events = HeardEvents(self.recorded)
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []
        self._loop = Loop()
        self._thread = threading.Thread(target=self._loop.run)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listening.bind(str(path))
        self.listening.listen(200)
        self.routes = self._routes()
        self.server = Server(
            self.listening, os.getuid(), self.routes, self._loop.call_soon_threadsafe, self.events
        )

    def _routes(self) -> list[Route]:
        words = Parameter("what to say", "hello", ("hello", "bye"))
        return [
            Route(
                method="POST",
                path="/add",
                summary="Count.",
                handle=self._add,
                gives=Sum,
                parameters={"text": words},
            ),
            Route(
                method="POST", path="/file", summary="Look.", handle=self._look, gives=Sum, fds=1
            ),
            Route(method="POST", path="/no", summary="No.", handle=self._no, gives=Sum),
            Route(method="POST", path="/host", summary="No.", handle=self._host, gives=Sum),
            Route(method="POST", path="/bug", summary="A bug.", handle=self._bug, gives=Sum),
            Route(
                method="GET",
                path="/events",
                summary="Events.",
                handle=lambda _: self.events.feed(),
                gives="application/x-ndjson",
            ),
            Route(
                method="GET",
                path="/echo",
                summary="Echo.",
                handle=lambda _: self.events.hub.feed(lambda _: b"", self.events.hub.put),
                gives="",
                protocol="echo",
            ),
        ]

    def _add(self, call: Call) -> Sum:
        self.gate.wait(PATIENCE)
        self.asked += 1
        return Sum(self.asked, call.parameters["text"])

    def _look(self, call: Call) -> Sum:
        (fd,) = call.fds
        self.sizes.append(os.fstat(fd).st_size)
        return Sum(self.sizes[-1], "")

    def _no(self, _call: Call) -> Sum:
        raise UserError("it is not the time", "wait")

    def _host(self, _call: Call) -> Sum:
        raise HostError("the host cannot", "buy another")

    def _bug(self, _call: Call) -> Sum:
        raise ZeroDivisionError

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(str(self.path))
        return client

    def close_server(self) -> None:
        """Close the server in the thread of the loop, as a machine does."""
        done = threading.Event()

        def close() -> None:
            self.server.close()
            done.set()

        self._loop.call_soon_threadsafe(close)
        assert done.wait(PATIENCE)


@contextmanager
def serving(path: Path) -> Iterator[Rig]:
    """Yield a rig that serves; afterwards nothing of it is left."""
    rig = Rig(path)
    rig._thread.start()
    rig.server.start()
    try:
        yield rig
    finally:
        rig.gate.set()
        rig.close_server()
        rig._loop.stop()
        rig._thread.join()
        rig._loop.close()
        rig.listening.close()


def request(method: str, path: str, body: bytes = b"", headers: Sequence[str] = ()) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(client: socket.socket) -> tuple[int, bytes]:
    """Return the status and the body of the next document."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = client.recv(1)
        assert got, data
        data += got
    head = data.decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r")[0] or 0)
    body = b""
    while len(body) < length:
        body += client.recv(length - len(body))
    return int(head.split()[1]), body


def ask(client: socket.socket, *arguments: Any) -> tuple[int, bytes]:
    client.sendall(request(*arguments))
    return answer(client)
