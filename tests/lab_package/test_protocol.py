"""Frames between client and agent."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.lab import protocol

KINDS = st.sampled_from([protocol.INPUT, protocol.OUTPUT, protocol.EXIT])
FRAMES = st.lists(st.tuples(KINDS, st.binary(max_size=300)), max_size=10)


@given(FRAMES, st.integers(1, 64))
def test_frames_survive_however_the_stream_is_cut(frames: list[protocol.Frame], size: int) -> None:
    stream = b"".join(protocol.frame(*found) for found in frames)
    receiver = protocol.Frames()
    found = []
    for start in range(0, len(stream), size):
        found += receiver.feed(stream[start : start + size])
    assert found == frames
    assert receiver.rest == b""


@given(st.binary(max_size=100), st.integers(1, 50))
def test_what_is_no_whole_frame_yet_is_kept(data: bytes, missing: int) -> None:
    stream = protocol.frame(protocol.INPUT, data)
    part = stream[: max(0, len(stream) - missing)]
    receiver = protocol.Frames()
    assert receiver.feed(part) == []
    assert receiver.rest == part
    assert receiver.feed(stream[len(part) :]) == [(protocol.INPUT, data)]


def test_the_window_is_a_whole_number_of_chunks() -> None:
    assert protocol.WINDOW % protocol.CHUNK == 0


@pytest.fixture
def ends() -> Iterator[tuple[protocol.Connection, protocol.Connection]]:
    """Give the two ends of one connection."""
    ours, theirs = (protocol.Connection(stream) for stream in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_frame_has_a_largest_size(beyond: int) -> None:
    header = b"I" + struct.pack(">I", protocol.MOST + beyond)
    receiver = protocol.Frames()
    if beyond:
        with pytest.raises(EOFError):
            receiver.feed(header)
    else:
        assert receiver.feed(header) == []
        assert receiver.feed(bytes(protocol.MOST)) == [(b"I", bytes(protocol.MOST))]


def test_a_connection_returns_frames_one_at_a_time(
    ends: tuple[protocol.Connection, protocol.Connection],
) -> None:
    ours, theirs = ends
    ours.send(protocol.HELLO, b"token")
    ours.send(protocol.RUN, b"{}")
    assert theirs.next() == (protocol.HELLO, b"token")
    assert theirs.next() == (protocol.RUN, b"{}")


def test_another_process_goes_on_with_what_was_received(
    ends: tuple[protocol.Connection, protocol.Connection],
) -> None:
    ours, theirs = ends
    whole = protocol.frame(protocol.INPUT, b"one")
    cut = protocol.frame(protocol.INPUT, b"two")
    ours.socket.sendall(protocol.frame(protocol.RUN) + whole + cut[:6])
    assert theirs.next() == (protocol.RUN, b"")
    assert theirs.unread == whole + cut[:6]
    successor = protocol.Connection(theirs.socket, theirs.unread)
    ours.socket.sendall(cut[6:])
    assert [successor.next(), successor.next()] == [
        (protocol.INPUT, b"one"),
        (protocol.INPUT, b"two"),
    ]


def test_a_connection_whose_other_end_is_gone_raises_eof(
    ends: tuple[protocol.Connection, protocol.Connection],
) -> None:
    ours, theirs = ends
    ours.send(protocol.INPUT)
    ours.close()
    assert theirs.next() == (protocol.INPUT, b"")
    with pytest.raises(EOFError):
        theirs.next()
