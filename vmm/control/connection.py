"""One client of a machine: HTTP/1.1 by h11 (RFC 9112), one request at a time.

    a request --> `Asked`, answered in the machine's loop --> a document --> the next request
                                                          '-> a feed, until one of both hangs up

A client costs at most `LONGEST_HEAD` + `LONGEST_BODY` bytes of what it sends, an `Outbox`, its
descriptors, and its slot. One that sends no whole request for `IDLE` seconds, or does not read the
answer for as long, is disconnected.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import h11

from vmm.closeable import Closeable
from vmm.control.outbox import Outbox
from vmm.control.routes import JSON, Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.loop import Loop, Timer

LONGEST_HEAD: Final = 16 << 10
"""Bytes of a request's line and header."""
LONGEST_BODY: Final = 64 << 10
MOST_FDS: Final = 4
"""Descriptors that may come with a request."""
IDLE: Final = 60.0
LINGER: Final = 2.0
"""Seconds that a client gets to read why it is disconnected."""
CHUNK: Final = 1 << 16


class Owner(Protocol):
    """Who has connections: `vmm.control.server.Server`."""

    def ask(self, connection: Connection, request: Asked) -> None:
        """Answer *request* by `Connection.answer` or `Connection.feed`, soon, in the loop."""

    def forget(self, connection: Connection) -> None:
        """Take note that *connection* is closed."""


class Asked:
    """A request as it came: method, path, body, descriptors, and the protocol to switch to."""

    def __init__(self, head: h11.Request, body: bytes, fds: Sequence[int]) -> None:
        self.method = head.method.decode()
        self.path = head.target.decode("ascii", "replace").partition("?")[0]
        self.body = body
        self.fds = fds
        self.protocol = b"".join(
            value for name, value in head.headers if name == b"upgrade"
        ).decode("ascii", "replace")


class Connection(Closeable):
    """Serve the client at *peer*. Belongs to *loop*'s thread, but for `post` and `end`."""

    def __init__(self, peer: socket.socket, loop: Loop, owner: Owner) -> None:
        peer.setblocking(False)  # noqa: FBT003  (the socket's own API)
        self._socket = peer
        self._loop = loop
        self._owner = owner
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._fds: list[int] = []
        self._asked = False
        self._wire = bytearray()  # on its way to the client, as HTTP has it
        self._outbox: Outbox | None = None  # of a feed
        self._raw = False  # it is HTTP no more
        self._ending = False
        self._ended = False  # all of a feed that will come is in self._wire
        self.on_data: Callable[[bytes], object] = lambda _data: None
        self.on_gone: Callable[[], object] = lambda: None
        self._timer: Timer | None = None
        self._expect(IDLE)
        loop.add_reader(peer.fileno(), self._readable)

    def _expect(self, seconds: float | None) -> None:
        """Disconnect the client in so many seconds; None: wait for it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self.close)

    # --- what the client sends ----------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(
                self._socket, CHUNK, MOST_FDS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._fds += fds
        if self._raw and data:
            self.on_data(data)
        elif (self._outbox is not None or self._ending) and data:
            pass  # it has nothing more to say
        elif self._outbox is not None or self._ending:
            self.close()
        elif len(self._fds) > MOST_FDS:
            self.refuse(400, f"a request brings at most {MOST_FDS} descriptors")
        else:
            self._take(data)
        if self._raw or self._ending:
            self._close_fds()

    def _take(self, data: bytes | None) -> None:
        """Take *data*, b"" at their end; None: look at what is here already."""
        try:
            if data is not None:
                self._http.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            self.refuse(error.error_status_hint, str(error))

    def _advance(self) -> None:
        """Go on with what has come, up to the end of a request."""
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                self._head = event
                self._body.clear()
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > LONGEST_BODY:
                    self.refuse(413, f"a body has at most {LONGEST_BODY} bytes")
                    return
            elif isinstance(event, h11.EndOfMessage):
                self._ask()
                return
            else:  # it has sent all that it had to send
                self._end()
                return
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))

    def _ask(self) -> None:
        assert self._head is not None, "its end has come"
        self._asked = True
        self._expect(None)
        self._loop.remove_reader(self._socket.fileno())  # one request at a time
        request = Asked(self._head, bytes(self._body), tuple(self._fds))
        self._owner.ask(self, request)

    # --- what it gets -------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, content: str = JSON) -> None:
        """Answer the request with a document. Does nothing if the client has gone."""
        if self._socket.fileno() < 0 or self._outbox is not None:
            return
        self._answered()
        headers = [("Content-Type", content), ("Content-Length", str(len(body)))]
        if self._ending:
            headers.append(("Connection", "close"))
        self._wire += self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        if self._head is None or self._head.method != b"HEAD":
            self._wire += self._http.send(h11.Data(data=body)) or b""
        self._send(h11.EndOfMessage())

    def refuse(self, status: int, why: str, hint: str = "") -> None:
        """Answer that there is no answer; a request that cannot be read ends the connection."""
        if not self._asked:
            self._ending = True
        body = {"error": why, **({"hint": hint} if hint else {})}
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.answer(status, json.dumps(body).encode() + b"\n")
        else:
            self.close()

    def feed(self, feed: Feed, content: str, protocol: str) -> None:
        """Answer the request with bytes without an end; *protocol*: by it, both ways."""
        if self._socket.fileno() < 0:
            return
        self._answered()
        self._expect(None)
        self._outbox = Outbox(feed.lost)
        if protocol:
            self._raw = True
            headers = [("Upgrade", protocol), ("Connection", "upgrade")]
            self._send(h11.InformationalResponse(status_code=101, headers=headers))
        else:
            headers = [("Content-Type", content)]
            self._send(h11.Response(status_code=200, headers=headers))
        if self._socket.fileno() >= 0:
            feed.begin(self)
            if self._raw and (early := self._http.trailing_data[0]):
                self.on_data(early)

    def _answered(self) -> None:
        self._asked = False
        self._close_fds()
        self._expect(IDLE)  # to be read, and for the next one
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def post(self, data: bytes) -> None:
        """Send *data* of a feed; see `vmm.control.routes.Channel`."""
        if self._outbox is not None and not self._ended and self._outbox.put(data):
            self._loop.call_soon_threadsafe(self._flush)

    def end(self) -> None:
        """Hang up once all is sent."""
        self._loop.call_soon_threadsafe(self._end)

    def finish(self) -> None:
        """Say to who waits for an answer that the machine has ended, and hang up."""
        if self._asked:
            self._ending = True
            self.refuse(503, "the machine has ended")
        self._end()

    def _send(self, event: Any) -> None:
        self._wire += self._http.send(event) or b""
        self._flush()

    def _flush(self) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        if self._socket.fileno() < 0:
            return
        try:
            while self._wire or self._refill():
                del self._wire[: self._socket.send(self._wire)]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._socket.fileno())
        self._sent()

    def _refill(self) -> bool:
        """Take the next bytes of a feed; return whether there are some."""
        if self._outbox is None or self._ended or not (data := self._outbox.take(CHUNK)):
            return False
        self._wire += data if self._raw else self._http.send(h11.Data(data=data)) or b""
        return True

    def _sent(self) -> None:
        """Go on after an answer: with the next request, or to the end."""
        if self._outbox is not None:
            if self._ending:
                self._hang_up()
        elif self._ending or self._http.our_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR):
            self._hang_up()
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._head = None
            self._loop.call_soon_threadsafe(self._next)

    def _next(self) -> None:
        """Look whether the next request has come already."""
        if self._socket.fileno() >= 0 and not self._asked:
            self._take(None)

    def _end(self) -> None:
        if self._socket.fileno() < 0 or self._ending:
            return
        self._ending = True
        self._expect(LINGER)
        while self._refill():
            pass
        self._ended = True
        if self._outbox is not None and not self._raw:
            self._wire += self._http.send(h11.EndOfMessage()) or b""
        self._flush()

    def _hang_up(self) -> None:
        """Close the connection once the client has read the answer, or has had time to."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._expect(LINGER)

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        """Hang up. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._expect(None)
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if not self._asked:  # else they are the handler's until it answers
            self._close_fds()
        self._owner.forget(self)
        self.on_gone()
