"""Packets survive any cutting of the stream; rubbish costs no memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmm.debug.packet import PACKET_SIZE, Parser, Signal, escape, frame, unescape


def parsed(*parts: bytes) -> list[bytes | Signal]:
    parser = Parser()
    return [item for part in parts for item in parser.feed(part)]


@given(st.binary(max_size=200))
def test_escape_is_undone_and_leaves_no_special_bytes(data: bytes) -> None:
    escaped = escape(data)
    assert unescape(escaped) == data
    assert not set(escaped) & set(b"#$*")


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 7))
def test_packets_come_back_however_the_stream_is_cut(packets: list[bytes], cut: int) -> None:
    packets = [escape(packet) for packet in packets]
    stream = b"".join(frame(packet) for packet in packets)
    parts = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    assert parsed(*parts) == packets


@given(st.binary(max_size=500))
def test_rubbish_is_no_error_and_a_packet_after_it_is_seen(data: bytes) -> None:
    assert parsed(data, b"#00#00", frame(b"qC"))[-1] == b"qC"


def test_a_packet_by_hand() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert parsed(b"+$g#67-\x03") == [Signal.ACK, b"g", Signal.NACK, Signal.INTERRUPT]


def test_a_wrong_checksum_is_told() -> None:
    assert parsed(b"$g#68$g#zz$g#67") == [Signal.BAD, Signal.BAD, b"g"]


def test_a_packet_that_never_ends_is_not_kept() -> None:
    parser = Parser()
    for _ in range(100):
        assert not list(parser.feed(b"$" + b"x" * PACKET_SIZE * 2))
    assert len(parser._packet or b"") <= PACKET_SIZE
    assert list(parser.feed(b"#00")) == [Signal.BAD]
