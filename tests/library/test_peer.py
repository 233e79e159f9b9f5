"""Calls both ways over two pipes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from vmm.errors import GuestError, HostError, UserError
from vmm.library.peer import LINE_MAX, Peer


class Ends:
    """Two peers; each feeds the other in small pieces."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[Any]]] = []
        self.here = Peer(lambda data: self.pass_on(self.there, data), self.serve_here)
        self.there: Peer = Peer(lambda data: self.pass_on(self.here, data), self.serve_there)
        self.lock = threading.Lock()

    def pass_on(self, to: Peer, data: bytes) -> None:
        with self.lock:
            for start in range(0, len(data), 7):
                to.feed(data[start : start + 7])

    def serve_here(self, method: str, arguments: list[Any]) -> Any:
        self.heard.append((method, arguments))
        return "answered"

    def serve_there(self, method: str, arguments: list[Any]) -> Any:
        match method:
            case "echo":
                return arguments
            case "ask back":
                return self.there.call("question", *arguments)
            case "tell":
                self.there.tell("told", *arguments)
                return None
            case "refuse":
                raise UserError("no", "ask somebody else")
            case "mourn":
                raise GuestError("the guest is gone")
            case "crash":
                raise ZeroDivisionError
        raise AssertionError(method)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    for each in (ends.here, ends.there):
        each.hang_up(HostError("over"))


def test_values_arrive_as_they_were(ends: Ends) -> None:
    values = [1 << 70, -1, "ä\n", b"\0\xff\n", None, True, [b"x", {"a": [1]}]]
    assert ends.here.call("echo", *values) == values


def test_an_answer_may_need_an_answer(ends: Ends) -> None:
    assert ends.here.call("ask back", b"x") == "answered"
    assert ends.heard == [("question", [b"x"])]


def test_what_is_told_comes_in_order(ends: Ends) -> None:
    for number in range(50):
        ends.here.call("tell", number)
    ends.there.call("question")  # after all of them
    assert ends.heard[:50] == [("told", [number]) for number in range(50)]


@pytest.mark.parametrize(
    ("method", "kind", "text"),
    [
        ("refuse", UserError, "no; ask somebody else"),
        ("mourn", GuestError, "the guest is gone"),
        ("crash", HostError, "ZeroDivisionError"),
    ],
)
def test_an_error_is_the_callers(ends: Ends, method: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        ends.here.call(method)
    assert ends.here.call("echo", 1) == [1], "and not the end"


def test_who_waits_hears_of_the_end(ends: Ends) -> None:
    alone = Peer(lambda _: None, lambda *_: None)
    threading.Timer(0.05, alone.hang_up, [HostError("it has ended")]).start()
    with pytest.raises(HostError, match="it has ended"):
        alone.call("echo")
    with pytest.raises(HostError, match="it has ended"):
        alone.call("echo")


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"to": 99, "is": 1}\n', b"[]\n", b"1\n"])
def test_what_is_no_message_is_an_error(ends: Ends, line: bytes) -> None:
    with pytest.raises(HostError, match="is no message"):
        ends.here.feed(line)


def test_a_message_has_a_largest_size(ends: Ends) -> None:
    half = bytes(LINE_MAX // 2 + 1)
    ends.here.feed(half)
    with pytest.raises(HostError, match="more than"):
        ends.here.feed(half)


def test_bytes_travel_as_base64() -> None:
    sent: list[bytes] = []
    peer = Peer(sent.append, lambda *_: None)
    peer.tell("write", 4096, b"abc")
    assert json.loads(sent[0]) == {"call": "write", "with": [4096, {"bytes": "YWJj"}]}
    peer.hang_up(HostError("over"))
