"""Where a machine's user asks: a Unix socket, and a thread with a loop of its own.

    client --HTTP--> control thread --a call--> the machine's loop
           <--HTTP--                <--a call--

The machine does not notice clients that hang, send rubbish or go away: what they cost is a slot.
The socket listens before the process is sealed; the thread starts after that.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Generator
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, Final

from vmm import thread, typed_json
from vmm.closeable import Closeable
from vmm.control.connection import Connection
from vmm.control.routes import JSON, Feed, Text
from vmm.errors import UserError, VmmError
from vmm.long_work import LongWork
from vmm.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Thread

    from vmm.control.connection import Asked
    from vmm.control.routes import Call, Route
    from vmm.events import Events

MOST_CLIENTS: Final = 128
MOST_LEAVING: Final = 32
"""Clients that were refused and have not hung up yet; see `connection.LINGER`."""
REST: Final = 0.1
"""Seconds until the next look for clients when descriptors have run out."""
FAREWELL: Final = 2.0
"""Seconds that clients get to read the last answers when the machine ends."""
CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred of unix(7): process, user and group ID."""


class Server(Closeable):
    """Serve *routes* to the user *uid*, and to root, on *listening*, which the caller closes.

    call_soon  calls a function in the thread of the machine's loop, in which this is closed
    events     told of clients that are refused, and of handlers that fail
    """

    def __init__(
        self,
        listening: socket.socket,
        uid: int,
        routes: Sequence[Route],
        call_soon: Callable[[Callable[[], object]], object],
        events: Events,
    ) -> None:
        self._listening = listening
        self._users = {uid, 0}
        self._routes = routes
        self._call_soon = call_soon
        self._long = LongWork(call_soon)
        self._events = events
        self._connections: set[Connection] = set()
        self._leaving: set[Connection] = set()
        self._thread: Thread | None = None
        self._closed = False
        self._ending = False
        self._loop = Loop()
        self._loop.add_reader(listening.fileno(), self._accept)

    def start(self) -> None:
        """Start to serve. Raises `HostError`: there can be no thread."""
        self._thread = thread.start("control", self._serve, kind=thread.CONTROL)

    def _serve(self) -> None:
        while True:
            try:
                self._loop.run()
            except Exception as error:  # noqa: BLE001  (the machine goes on, and is reached)
                self._events.emit("control-failed", request="", error=repr(error))
                for connection in [*self._connections, *self._leaving]:
                    connection.close()
            else:
                return

    # --- clients ------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            peer, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors are left, and the client still waits
            self._loop.remove_reader(self._listening.fileno())
            self._loop.call_later(REST, self._accept_again)
            return
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        _, uid, _ = CREDENTIALS.unpack(credentials)
        if uid not in self._users:
            self._events.emit("control-refused", uid=uid)
            self._turn_away(peer, 403, "this is another user's machine")
        elif len(self._connections) >= MOST_CLIENTS:
            self._turn_away(peer, 503, f"{MOST_CLIENTS} clients are connected")
        else:
            self._connections.add(Connection(peer, self._loop, self))

    def _turn_away(self, peer: socket.socket, status: int, why: str) -> None:
        """Answer a client that gets no slot, while it has not yet read the answer one of a few."""
        if len(self._leaving) >= MOST_LEAVING:
            peer.close()
            return
        connection = Connection(peer, self._loop, self)
        self._leaving.add(connection)
        connection.refuse(status, why)

    def _accept_again(self) -> None:
        if not self._ending:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def forget(self, connection: Connection) -> None:
        """Take note that *connection* is closed."""
        self._connections.discard(connection)
        self._leaving.discard(connection)
        if self._ending and not self._connections:
            self._loop.stop()

    # --- requests -----------------------------------------------------------------------------

    def ask(self, connection: Connection, request: Asked) -> None:
        """Have the machine answer *request*, or refuse it."""
        found = [route for route in self._routes if route.path == request.path]
        if not found:
            connection.refuse(404, f"{request.path[:80]}: not found", "/openapi.json lists all")
            return
        route = next((each for each in found if each.method == request.method), None)
        if route is None:
            methods = ", ".join(each.method for each in found)
            connection.refuse(405, f"{request.method[:20]} {request.path}", f"use {methods}")
            return
        if route.protocol and request.protocol != route.protocol:
            connection.refuse(
                426, f"{request.path} is another protocol", f"send Upgrade: {route.protocol}"
            )
            return
        try:
            call = route.call(request.body, request.fds)
        except UserError as error:
            connection.refuse(400, error.message, error.hint)
            return

        self._call_soon(lambda: self._long.begin(self._do(connection, route, call)))

    def _do(self, connection: Connection, route: Route, call: Call) -> Generator[None, None, None]:
        """Answer *call*, in parts, in the thread of the machine's loop."""
        try:
            result = route.handle(call)
            if isinstance(result, Generator):
                result = yield from result
            answer = _answerer(connection, route, result)
        except VmmError as error:
            status = 409 if isinstance(error, UserError) else 500
            answer = _refuser(connection, status, error.message, error.hint)
        except Exception as error:  # noqa: BLE001  (a request must not end the machine)
            self._events.emit("control-failed", request=route.path, error=repr(error))
            answer = _refuser(connection, 500, f"a bug in pyvmm: {error!r}", "report this")
        self._loop.call_soon_threadsafe(answer)

    # --- the end ------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._ending = True
        self._loop.remove_reader(self._listening.fileno())
        for connection in list(self._connections):
            connection.finish()
        if not self._connections:
            self._loop.stop()
        self._loop.call_later(FAREWELL, self._loop.stop)

    def close(self) -> None:
        """Tell clients that the machine has ended, and hang up. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._long.close()
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._finish)
            self._thread.join()
        for connection in [*self._connections, *self._leaving]:
            connection.close()
        self._loop.close()


def _answerer(connection: Connection, route: Route, result: Any) -> Callable[[], None]:
    """Return what sends *result*, encoded here: it may be the machine's own, which changes."""
    if isinstance(result, Feed):
        return lambda: connection.feed(result, str(route.gives), route.protocol)
    if isinstance(result, Text):
        text = result.body.encode()
        return lambda: connection.answer(200, text, result.content)
    values = typed_json.encode(result) if is_dataclass(result) else result
    body = json.dumps(values, separators=(",", ":")).encode() + b"\n"
    return lambda: connection.answer(200, body, JSON)


def _refuser(connection: Connection, status: int, why: str, hint: str) -> Callable[[], None]:
    return lambda: connection.refuse(status, why, hint)
