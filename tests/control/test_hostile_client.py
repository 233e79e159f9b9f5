"""Whatever a client sends: the server's loop goes on, and descriptors do not stay."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from tests.control.rig import request
from vmm.control.connection import Asked, Connection
from vmm.control.routes import Feed
from vmm.loop import Loop

GOOD = [
    request("GET", "/"),
    request("POST", "/pause", b"{}"),
    request("GET", "/feed"),
    request("GET", "/raw", headers=["Upgrade: raw", "Connection: upgrade"]),
    request("POST", "/x", headers=["Expect: 100-continue", "Content-Length: 2"]),
    request("POST", "/x", headers=["Transfer-Encoding: chunked"]) + b"1\r\na\r\n0\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
]
PARTS = st.lists(
    st.tuples(st.sampled_from(GOOD) | st.binary(max_size=200), st.integers(0, 5)), max_size=6
)


class Owner:
    """Answer each request at once: by a document, a feed, or a refusal."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, connection: Connection, request: Asked) -> None:
        self.asked += 1
        if request.path in {"/feed", "/raw"}:
            feed = Feed(lambda channel: channel.post(b"fed"), lambda _: b"")
            connection.feed(feed, "text/plain", "raw" if request.path == "/raw" else "")
        elif request.method == "DELETE":
            connection.refuse(405, "no")
        else:
            connection.answer(200, b"{}")

    def forget(self, _connection: Connection) -> None:
        """Nothing to forget."""


def attack(parts: list[tuple[bytes, int]]) -> None:
    """Send each part with so many descriptors; then hang up."""
    before = os.listdir("/proc/self/fd")  # noqa: PTH208  (numbers)
    null = os.open(os.devnull, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    with Loop() as loop, theirs:
        owner = Owner()
        connection = Connection(ours, loop, owner)
        theirs.settimeout(0)
        for data, fds in parts:
            with suppress(OSError):
                if data and fds:
                    socket.send_fds(theirs, [data], [null] * fds)
                else:
                    theirs.send(data)
            for _ in range(4):
                loop.call_soon_threadsafe(lambda: None)
                loop._round()
        got = b""
        with suppress(OSError):
            while data := theirs.recv(1 << 16):
                got += data
        assert not got or got.startswith(b"HTTP/1.1 "), got
        theirs.close()
        loop.call_later(0.05, connection.close)
        loop.run(until=lambda: ours.fileno() < 0)
    os.close(null)
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


@given(PARTS)
@example([(GOOD[0], 4), (GOOD[0], 5), (b"\0", 1)])
@example([(GOOD[3] + b"early", 1), (b"later", 4)])
@example([(each, 1) for each in GOOD])
def test_whatever_a_client_sends_the_loop_goes_on(parts: list[tuple[bytes, int]]) -> None:
    attack(parts)


def test_what_is_good_is_asked() -> None:
    loop, owner = Loop(), Owner()
    ours, theirs = socket.socketpair()
    with loop, theirs, Connection(ours, loop, owner):
        theirs.sendall(GOOD[0] * 3)
        loop.run(until=lambda: owner.asked == 3)


def test_what_is_posted_after_the_end_of_a_feed_is_dropped() -> None:
    loop, owner = Loop(), Owner()
    ours, theirs = socket.socketpair()
    with loop, theirs, Connection(ours, loop, owner) as connection:
        theirs.sendall(GOOD[2])
        loop.run(until=lambda: owner.asked == 1)
        connection._end()
        connection.post(b"late")
        for _ in range(3):
            loop.call_soon_threadsafe(lambda: None)
            loop._round()
        assert theirs.recv(4096).endswith(b"fed\r\n0\r\n\r\n")
