"""A console that several see and type into, and the terminal of one who attaches."""

from __future__ import annotations

import os
import pty
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pyte
import pytest

from vmm.control.attach import attach
from vmm.control.consoles import TYPED_AHEAD, SharedConsole
from vmm.terminal.escape import CTRL_A


class Source:
    def __init__(self) -> None:
        self.waiting = b""

    def fileno(self) -> int:
        return 7

    def drain(self, limit: int, /) -> bytes:
        data, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return data


class Sink:
    def __init__(self) -> None:
        self.room = 0
        self.taken = b""
        self.on_space: Callable[[], object] = lambda: None

    def receive(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.taken += taken
        return len(taken)

    def receive_break(self) -> bool:
        return True


class Client:
    def __init__(self) -> None:
        self.seen = b""
        self.on_data: Callable[[bytes], object] = lambda _: None
        self.on_gone: Callable[[], object] = lambda: None

    def post(self, data: bytes) -> None:
        self.seen += data

    def end(self) -> None:
        raise AssertionError


def test_all_who_are_attached_see_what_the_guest_sends_and_so_does_the_terminal() -> None:
    source, clients = Source(), [Client(), Client()]
    shared = SharedConsole(source, Sink(), lambda call: call())
    source.waiting = b"before"
    assert shared.drain(100) == b"before"
    for each in clients:
        shared.feed().begin(each)
    source.waiting = b"hello"
    assert shared.drain(4) + shared.drain(4) + shared.drain(4) == b"hello"
    assert [each.seen for each in clients] == [b"hello"] * 2
    clients[0].on_gone()
    source.waiting = b"!"
    shared.drain(1)
    assert [each.seen for each in clients] == [b"hello", b"hello!"]


def test_what_is_typed_waits_for_room_and_has_a_bound() -> None:
    sink, client = Sink(), Client()
    shared = SharedConsole(Source(), sink, lambda call: call())
    shared.feed().begin(client)
    client.on_data(b"abc")
    assert sink.taken == b""
    sink.room = 2
    shared.more_room()
    assert sink.taken == b"ab"
    client.on_data(b"x" * (2 * TYPED_AHEAD))
    sink.room = 4 * TYPED_AHEAD
    shared.more_room()
    assert len(sink.taken) == 2 + TYPED_AHEAD


class Screen:
    """A terminal that somebody has attached from, and what it shows."""

    def __init__(self) -> None:
        self.master, self.terminal = pty.openpty()
        self.ours, self.theirs = socket.socketpair()
        self.shown = pyte.Screen(60, 5)
        self._stream = pyte.ByteStream(self.shown)
        self.left: list[bool] = []
        self._thread = threading.Thread(target=self._attach)

    def _attach(self) -> None:
        self.left.append(attach(self.theirs, b"early ", CTRL_A, self.terminal, self.terminal))

    def look(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in "\n".join(self.shown.display):
            assert time.monotonic() < deadline, self.shown.display
            if select.select([self.master], [], [], 0.1)[0]:
                self._stream.feed(os.read(self.master, 4096))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setattr("vmm.control.attach.signal.signal", lambda *_: None)  # of the main thread
    monkeypatch.setattr("vmm.terminal.raw_mode.signal.signal", lambda *_: None)
    made = Screen()
    made._thread.start()
    yield made
    made.ours.close()
    made._thread.join(20)
    for fd in (made.master, made.terminal):
        os.close(fd)
    made.theirs.close()


def test_keys_go_to_the_guest_and_the_prefix_d_leaves(screen: Screen) -> None:
    screen.look("attached; C-a d leaves")
    screen.ours.sendall(b"login: ")
    screen.look("login:")
    os.write(screen.master, b"root\r\x03\x01\x01")
    got = b""
    while len(got) < 7:
        got += screen.ours.recv(100)
    assert got == b"root\r\x03\x01", "^C is the guest's; the prefix twice is one of it"
    os.write(screen.master, b"\x01d")
    screen._thread.join(20)
    assert screen.left == [True]


def test_the_end_of_the_machine_ends_an_attachment(screen: Screen) -> None:
    screen.look("attached")
    screen.ours.close()
    screen._thread.join(20)
    assert screen.left == [False]
