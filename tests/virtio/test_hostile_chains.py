"""The bytes of a chain against a model: buffers anywhere, any offset, any size, and files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.guarded import Guarded, GuardedArray
from vmm._native import ffi, lib
from vmm.virtio.queue import Chain

ROOM = 1 << 16
PIECES = 64
"""Buffers that one system call takes (cdefs/chain.c)."""


class World:
    """A chain over guarded memory: readable buffers, writable ones, and stale ones behind them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.memory = Guarded(ROOM)
        self.memory.view[:] = random.randbytes(ROOM)
        self.must = bytearray(self.memory.view)
        self.chain = Chain(400)
        self.out = GuardedArray("uint8_t", ROOM)
        counts = (0, 1, 2, 5, PIECES - 1, PIECES, PIECES + 1, 150)
        readable, writable = random.choice(counts), random.choice(counts)
        self.readable, self.writable, stale = (
            [self._buffer() for _ in range(count)] for count in (readable, writable, 2)
        )
        at = random.randrange(100)
        self.places = []
        for index, length in enumerate(self.readable + self.writable + stale):
            if index == readable + writable - 1 and random.random() < 0.3:
                at = ROOM - length  # up to the guard page
            segment = self.chain._segments[index]
            segment.iov_base = ffi.cast("void *", self.memory.address + at)
            segment.iov_len = length
            self.places.append(at)
            at = (at + length + random.choice((0, 0, 1, 8))) % (ROOM - 512)
        c = self.chain.c
        c.readable, c.writable = readable, writable
        c.readable_bytes, c.writable_bytes = sum(self.readable), sum(self.writable)

    def _buffer(self) -> int:
        return self.random.choice((1, 2, 16, 100, self.random.randrange(1, 200)))

    def close(self) -> None:
        self.memory.close()
        self.out.close()

    @property
    def sent(self) -> bytes:
        """What the driver gave for reading."""
        parts = zip(self.places, self.readable, strict=False)
        return b"".join(bytes(self.memory.view[at : at + length]) for at, length in parts)

    def must_write(self, data: bytes, offset: int = 0) -> int:
        """Note that the device writes *data*; return how many bytes have room."""
        done, at = 0, -offset
        for place, length in zip(self.places[len(self.readable) :], self.writable, strict=False):
            start = max(0, -at)
            part = data[max(0, at) : max(0, at + length)]
            if part:
                self.must[place + start : place + start + len(part)] = part
                done += len(part)
            at += length
        return done

    def size(self, total: int) -> int:
        near = self.random.randrange(-2, 3) + self.random.choice((0, total, total // 2, 16))
        return max(0, min(near, ROOM))


@contextmanager
def world(seed: int) -> Iterator[World]:
    made = World(Random(seed))  # noqa: S311
    try:
        yield made
        assert made.memory.view.tobytes() == made.must, "bytes that are not the device's"
    finally:
        made.close()


seeds = given(seed=st.integers(0, (1 << 64) - 1))


@settings(max_examples=150)
@seeds
def test_a_read_has_what_the_driver_sent(seed: int) -> None:
    with world(seed) as made:
        sent = made.sent
        offset, size = made.size(len(sent)), made.size(len(sent))
        to = made.out.c + (ROOM - size)  # up to a guard page
        must = sent[offset : offset + size]
        assert lib.pyvmm_chain_read(made.chain.c, offset, to, size) == len(must)
        assert bytes(ffi.buffer(to, size))[: len(must)] == must
        assert made.chain.read(size, offset) == must


@settings(max_examples=150)
@seeds
def test_a_write_changes_writable_bytes_alone(seed: int) -> None:
    with world(seed) as made:
        total = sum(made.writable)
        offset, size = made.size(total), made.size(total)
        data = made.random.randbytes(size)
        origin = made.out.c + (ROOM - size)
        ffi.memmove(origin, data, size)
        done = lib.pyvmm_chain_write(made.chain.c, offset, origin, size)
        assert done == made.must_write(data, offset)


@settings(max_examples=100)
@seeds
def test_random_bytes_fill_as_much_as_was_asked_for(seed: int) -> None:
    with world(seed) as made:
        total = sum(made.writable)
        most = made.random.choice((made.size(total), 1 << 40))
        assert made.chain.fill_random(most) == min(most, total)
        filled = bytes(made.memory.view)
        must = b"".join(
            filled[at : at + length]
            for at, length in zip(made.places[len(made.readable) :], made.writable, strict=False)
        )[:most]
        made.must_write(must)


@settings(max_examples=150)
@seeds
def test_a_file_gets_what_the_driver_sent(seed: int) -> None:
    with world(seed) as made:
        sent = made.sent
        offset, most = made.size(len(sent)), made.size(len(sent))
        read, write = os.pipe()
        os.set_blocking(read, False)
        done = lib.pyvmm_chain_to_file(made.chain.c, offset, write, most)
        os.close(write)
        must = sent[offset : offset + most]
        touched, at = 0, 0
        for length in made.readable:  # buffers beyond the first pieces are left to the next call
            if at + length > offset and at < offset + most:
                touched += 1
            at += length
            if touched == PIECES:
                must = must[: at - offset]
                break
        assert done == len(must)
        assert os.read(read, ROOM) == must
        os.close(read)


@settings(max_examples=150)
@seeds
def test_a_file_is_read_into_writable_bytes_alone(seed: int) -> None:
    with world(seed) as made:
        total = sum(made.writable)
        most, size = made.size(total), made.size(total)
        data = made.random.randbytes(size)
        read, write = os.pipe()
        os.write(write, data or b"\0")
        room = min(most, sum(made.writable[:PIECES]))
        must = (data or b"\0")[:room]
        assert lib.pyvmm_chain_from_file(made.chain.c, read, most) == len(must)
        made.must_write(must)
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("beyond", [0, 1, 100])
def test_a_read_behind_the_end_has_no_bytes(beyond: int) -> None:
    with world(1) as made:
        assert made.chain.read(10, made.chain.readable + beyond) == b""
        assert made.chain.read(-1) == b""
