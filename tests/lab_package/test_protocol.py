"""Frames between client and agent."""

from __future__ import annotations

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
