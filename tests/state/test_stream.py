"""The stream of a live migration, as a hostile or broken peer sends it."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.moving import (
    BASE,
    END,
    PAGE,
    PAGES,
    RAW,
    TEXT,
    ZERO,
    Stores,
    frame,
    ledger,
    noted,
    pair,
    ram,
    received,
    runs,
    text,
)
from vmm._native import ffi
from vmm.errors import HostError, UserError, VmmError
from vmm.memory import Mapping, Region
from vmm.state.migration_messages import Failed, Round, Running
from vmm.state.precopy import Precopy
from vmm.state.reception import Reception
from vmm.state.stream import MOST_TEXT, Channel


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_pages_and_zeroes_come_in_order() -> None:
    one, two = b"\1" * PAGE, b"\2" * 2 * PAGE
    data = frame(RAW, 2, runs((1, 1), (4, 2)) + one + two)
    data += frame(ZERO, 1, runs((5, 1)))
    wanted = bytes(PAGE) + one + bytes(2 * PAGE) + b"\2" * PAGE + bytes(3 * PAGE)
    assert received(data + END) == wanted


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frame(9, 0, b""), "frame 1: its kind is wrong (kind 9, count 0, size 0)"),
        (frame(ZERO, 0, b""), "frame 1: its count is wrong"),
        (frame(ZERO, 257, b"", 257 * 16), "frame 1: its count is wrong"),
        (frame(ZERO, 1, b"", 15), "frame 1: its size is wrong"),
        (frame(ZERO, 1, runs((0, 1)) + b"x"), "frame 1: its size is wrong"),
        (frame(RAW, 1, runs((0, 1)), 16), "frame 1: its size is wrong"),
        (frame(ZERO, 1, runs((PAGES, 1))), "frame 1: its offset of a run is wrong"),
        (frame(ZERO, 1, struct.pack("<QQ", 1, PAGE)), "its offset of a run is wrong"),
        (frame(ZERO, 1, runs((0, 0))), "frame 1: its length of a run is wrong"),
        (frame(ZERO, 1, runs((1, PAGES))), "frame 1: its length of a run is wrong"),
        (frame(ZERO, 1, struct.pack("<QQ", 0, 1)), "its length of a run is wrong"),
        (frame(ZERO, 1, struct.pack("<QQ", PAGE, 2**64 - PAGE)), "its length of a run is wrong"),
        (frame(ZERO, 1, runs((0, 1))) + frame(9, 0, b""), "frame 2: its kind is wrong"),
        (frame(TEXT, 0, b"{"), "a message is not JSON"),
        (frame(TEXT, 0, b"", 0), "size of a message: 0 bytes"),
        (frame(TEXT, 0, b"", MOST_TEXT + 1), "size of a message: 16777217 bytes"),
        (text([]), "message: None where 'round' was due"),
        (text({"message": "x"}), "message: 'x' where 'round' was due"),
        (text({"message": "round", "number": 0}), "round"),
        (text({"message": "round", "number": "0", "last": True}), "round.number"),
    ],
)
def test_what_is_no_stream_is_refused_by_the_member(data: bytes, why: str) -> None:
    with pytest.raises(UserError) as caught:
        received(data)
    assert f"the source: {why}" in str(caught.value) or why in str(caught.value)


def test_a_peer_that_fails_says_why(owned: ExitStack) -> None:
    near, far = pair(owned)
    near.send(Failed("no space", "free some"))
    with pytest.raises(HostError, match="source: no space; free some"):
        far.receive(Round)


@pytest.mark.parametrize("time", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_time_is_a_number(owned: ExitStack, time: str) -> None:
    """What Python's json takes for one is not in JSON (RFC 8259, 6), nor is it equal to itself."""
    near, far = pair(owned)
    near._socket.sendall(frame(TEXT, 0, b'{"message": "running", "time": %s}' % time.encode()))
    with pytest.raises(UserError, match=r"source: running\.time: .* is no number"):
        far.receive(Running)


@settings(max_examples=150)
@given(at=st.integers(0, 400), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_stream_is_an_error_or_other_pages(at: int, bit: int, cut: bool) -> None:  # noqa: FBT001
    """No crash and no wait: RAM keeps its size, and the error is one of ours."""
    data = bytearray(frame(RAW, 1, runs((1, 1)) + b"\1" * PAGE))
    data = bytearray(frame(ZERO, 2, runs((5, 1), (7, 1)))) + data + END
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    with suppress(VmmError):
        assert len(received(bytes(data))) == PAGES * PAGE


class Cut(Thread):
    """Pass bytes from one socket to the other, and hang up after *most*."""

    def __init__(self, source: socket.socket, target: socket.socket, most: int) -> None:
        super().__init__(daemon=True)
        self._source, self._target, self._most = source, target, most
        self.start()

    def run(self) -> None:
        with self._source, self._target, suppress(OSError):
            while self._most > 0 and (data := self._source.recv(min(self._most, 1 << 16))):
                self._target.sendall(data)
                self._most -= len(data)


def test_a_connection_that_is_cut_anywhere_is_known_at_both_ends() -> None:
    """At 200 places: the destination never takes a part for the whole."""
    dice = random.Random(3)  # noqa: S311  (no secret)
    size = 40 * PAGE
    whole = size // 2 + 16 * PAGE
    for turn in range(200):
        with ExitStack() as owned:
            source, target = ram(owned, size), ram(owned, size)
            source.view[: size // 2] = dice.randbytes(size // 2)
            near, left = socket.socketpair()
            right, far = socket.socketpair()
            most = dice.randrange(whole) if turn else 10 * size
            relay = Cut(left, right, most)
            sender = owned.enter_context(Channel(near, "the destination"))
            taker = owned.enter_context(Channel(far, "the source"))
            reception = Reception(target, [taker])
            errors: list[VmmError] = []

            def pull(reception: Reception = reception, errors: list[VmmError] = errors) -> None:
                try:
                    reception.run()
                except VmmError as error:
                    errors.append(error)

            puller = Thread(target=pull, daemon=True)
            puller.start()
            stores = Stores(source)
            precopy = Precopy(source, stores, noted(source), ledger(size), [sender], goal=1.0)
            with suppress(HostError):
                precopy.run()
                stores.store(turn % 40, 7)
                precopy.collect()
                precopy.finish()
            sender.interrupt()
            puller.join(20)
            relay.join(20)
            if not errors:
                assert bytes(target.view) == bytes(source.view), turn
            else:
                assert "closed the connection" in str(errors[0]), errors
            assert errors or most >= near_bytes(sender), turn
            if not turn:
                assert not errors


def near_bytes(channel: Channel) -> int:
    """Return the bytes of pages that went out."""
    return channel.moved.wire


def test_a_channel_sends_no_more_than_its_ram(owned: ExitStack) -> None:
    """The last page of RAM may be a part of one."""
    size = 3 * PAGE + 100
    mapping = owned.enter_context(Mapping.anonymous(size))
    source = Region(BASE, mapping.view)
    target = owned.enter_context(Mapping.anonymous(size)).region(BASE)
    source.view[size - 1] = 9
    near, far = pair(owned)
    bitmap = ffi.new("uint64_t[1]", [0xFF])
    near.send_pages(source, source.host_address, bitmap, 0, 8)
    near.send(Round(0, last=True))
    Reception(target, [far]).run()
    assert target.view[size - 1] == 9
    assert (near.moved.raw, near.moved.zero) == (100, 3 * PAGE)
    assert far.moved == near.moved
