"""Hostile packets against a model: what goes out, what comes in, and all memory beside it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.net.net_driver import HEADER, RECEIVE, SIZE, TRANSMIT, Wired, wait
from tests.virtio.ring_driver import BASE, KINDS, SECOND, Buffer, Memory, gather
from tests.virtio.ring_driver import SIZE as MEMORY
from vmm._native import lib
from vmm.virtio import status
from vmm.virtio.net import registers

MOST = int(lib.PYVMM_NET_MOST)
WINDOW = int(lib.PYVMM_NET_WINDOW)
ROOM = BASE + 0x6_0000
RINGS_END = BASE + 0x3_0000
"""Rings and tables are below, and the driver's own business."""
WIRES = ("tap", "stream")


class Net:
    """A device, its wire, and guest memory as it has to be."""

    def __init__(self, random: Random, wire: str, kind: str) -> None:
        self.random, self.stream, self.kind = random, wire == "stream", kind
        self.memory, self.events = Memory(), Recorded()
        self.wired = Wired(self.memory, self.events, stream=self.stream)
        if self.stream:  # neither side takes a large frame at once
            for end in (self.wired.wire, self.wired.theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.mergeable = random.random() < 0.8
        self.start()

    def start(self) -> None:
        self.wired.start(self.kind, registers.F_MRG_RXBUF if self.mergeable else 0)
        self.memory.guest.write(ROOM, self.random.randbytes(0x1000))
        self.note()

    def note(self) -> None:
        """Take memory as it is for what it has to be."""
        self.must = [bytearray(mapping.view) for mapping in self.memory.mappings]

    def must_have(self, address: int, data: bytes) -> None:
        which, base = (0, BASE) if address < SECOND else (1, SECOND)
        self.must[which][address - base : address - base + len(data)] = data

    def check(self) -> None:
        start = RINGS_END - BASE
        assert self.memory.mappings[0].view[start:].tobytes() == self.must[0][start:]
        assert self.memory.mappings[1].view.tobytes() == self.must[1]

    def cut(self, at: int, size: int, *, most: int = 8) -> list[Buffer]:
        """Cut *size* bytes from *at* on into buffers."""
        found: list[Buffer] = []
        while size:
            part = size
            if len(found) < most - 1 and self.random.random() < 0.6:
                part = min(size, self.random.choice((1, 4, 10, 11, 12, 13, 100, 1500)))
            found.append(Buffer(at, part))
            at, size = at + part + self.random.choice((0, 0, 7)), size - part
        return found

    def counters(self, index: int) -> tuple[int, int, int]:
        ring = self.wired.backend._threads[index].c
        return int(ring.packets), int(ring.bytes), int(ring.dropped)

    def broken(self) -> bool:
        driver = self.wired.driver

        def there() -> bool:
            self.wired.device.attend()
            return bool(driver.load("Status") & status.NEEDS_RESET)

        return wait(there)

    # Out

    def send(self) -> None:
        """Send one packet of any length; check that it comes out as it is, or not at all."""
        random, wired = self.random, self.wired
        size = random.choice((HEADER + 1, 60, 1514, 9000, MOST - 1, MOST, random.randrange(70_000)))
        if random.random() < 0.15:
            size = random.choice((MOST + 1, MOST + 3, MOST + 4, MOST + HEADER, 100_000, HEADER))
        if random.random() < 0.05:
            size = random.choice((1, HEADER - 1))
        data = random.randbytes(size)
        buffers = self.cut(ROOM, size)
        rest = data
        for each in buffers:
            self.memory.guest.write(each.address, rest[: each.length])
            rest = rest[each.length :]
        if random.random() < 0.2:  # which a device has to leave alone
            buffers.append(Buffer(SECOND + 0x100, 64, writable=True))
        self.note()
        before = self.counters(TRANSMIT)
        wired.tx.add(*buffers, indirect=True)
        wired.driver.store("QueueNotify", TRANSMIT)
        if size < HEADER:
            assert self.broken()
            self.check()
            self.start()
            return
        used: list[tuple[int, int]] = []
        goes = not self.stream or HEADER < size <= MOST
        if goes:
            assert wired.get() == (data[HEADER:] if self.stream else data)
        assert wait(lambda: bool(gather(wired.tx, used)))
        assert [length for _, length in used] == [0]
        packets, octets, dropped = self.counters(TRANSMIT)
        must = (1, size - HEADER, 0) if goes else (0, 0, 1)
        assert (packets - before[0], octets - before[1], dropped - before[2]) == must
        self.check()

    # In

    def offer(
        self, lengths: list[int], most: int = 6, at: int = ROOM
    ) -> list[tuple[int, list[Buffer]]]:
        """Make buffers of these lengths available; return their chains."""
        chains = []
        for length in lengths:
            buffers = [each._replace(writable=True) for each in self.cut(at, length, most=most)]
            at = buffers[-1].address + buffers[-1].length + self.random.choice((0, 1, 8))
            before = [Buffer(RINGS_END + 8, 16)] * (self.random.random() < 0.2)
            chains.append((self.wired.rx.add(*before, *buffers, indirect=True), buffers))
        assert at <= BASE + MEMORY
        self.wired.driver.store("QueueNotify", RECEIVE)
        return chains

    def receive(self) -> None:
        """Offer buffers, send one frame over the wire, and check where it went."""
        random = self.random
        size = random.choice((1, 2, 60, 1514, 4000, 20_000, MOST - HEADER, MOST - HEADER - 1))
        frame = random.randbytes(size)
        lengths: list[int] = []
        while sum(lengths) < size + HEADER:
            lengths.append(random.choice((HEADER, HEADER + 1, 30, 1526, 4096, 30_000, MOST)))
            if not self.mergeable:
                lengths = [random.choice((size + HEADER, size + HEADER + 9, MOST))]
            if len(lengths) > 40:
                lengths = [MOST]
        if not self.mergeable:
            lengths = [max(lengths)]
        chains = self.offer(lengths)
        self.note()
        self.deliver(chains, frame)

    def deliver(
        self, chains: list[tuple[int, list[Buffer]]], frame: bytes, later: list[int] | None = None
    ) -> None:
        """Send the frame, and check that these chains have it, with buffers that come *later*."""
        wired, size = self.wired, HEADER + len(frame)
        before = self.counters(RECEIVE)
        header = bytes(HEADER) if self.stream else self.random.randbytes(HEADER)
        wired.put(frame, header)
        if later is not None:
            assert not wait(lambda: bool(wired.rx.used()), 0.1), "there is no room"
            chains = chains + self.offer(later, at=ROOM + 0x8000)
        lengths = [sum(each.length for each in buffers) for _, buffers in chains]
        count = next(n for n in range(1, len(lengths) + 1) if sum(lengths[:n]) >= size)
        data = header[: HEADER - 2] + struct.pack("<H", count) + frame
        used: list[tuple[int, int]] = []
        assert wait(lambda: len(gather(wired.rx, used)) >= count)
        must = []
        for (identity, buffers), length in zip(chains, lengths, strict=True):
            if data:
                must.append((identity, min(length, len(data))))
            for each in buffers:
                part, data = data[: each.length], data[each.length :]
                self.must_have(each.address, part)
        assert used == must
        self.check()
        packets, octets, dropped = self.counters(RECEIVE)
        assert (packets - before[0], octets - before[1]) == (1, len(frame))
        assert dropped == before[2]

    def end(self) -> None:
        self.wired.close()
        self.memory.close()


@contextmanager
def net(seed: int, wire: str, kind: str) -> Iterator[Net]:
    made = Net(Random(seed), wire, kind)  # noqa: S311
    try:
        yield made
    finally:
        made.end()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_a_packet_goes_out_as_it_is_or_not_at_all(wire: str, kind: str, seed: int) -> None:
    with net(seed, wire, kind) as made:
        for _ in range(25):
            made.send()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_a_packet_comes_in_where_there_is_room_and_nowhere_else(
    wire: str, kind: str, seed: int
) -> None:
    """Each driver offers just enough, so no buffer of the last packet is at hand."""
    with net(seed, wire, kind) as made:
        for _ in range(6):
            made.receive()
            made.start()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", KINDS)
def test_buffers_go_round_more_often_than_the_window_holds(wire: str, kind: str) -> None:
    with net(1, wire, kind) as made:
        made.mergeable = True
        made.start()
        for number in range(3 * WINDOW):
            made.deliver(made.offer([HEADER + 8, 40]), bytes([number]) * (9 + number % 30))


@pytest.mark.parametrize("wire", WIRES)
def test_more_buffers_than_a_packet_may_take_are_no_room(wire: str) -> None:
    with net(2, wire, "split") as made:
        made.mergeable = True
        made.start()
        chains = made.offer([16] * SIZE, most=1)
        assert len(chains) == WINDOW == SIZE
        outside = made.memory.guest.read(ROOM + 0x2000, 0x1_0000)
        made.wired.put(bytes(16 * SIZE - HEADER + 1))
        assert wait(lambda: made.counters(RECEIVE)[2] == 1), "it is dropped"
        made.wired.put(b"x" * (16 * SIZE - HEADER))
        used: list[tuple[int, int]] = []
        assert wait(lambda: len(gather(made.wired.rx, used)) == SIZE)
        assert used == [(identity, 16) for identity, _ in chains]
        assert made.memory.guest.read(ROOM + 0x2000, 0x1_0000) == outside


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("count", [1023, 1024, 1025, 2000])
def test_more_pieces_than_a_system_call_takes_do_no_harm(wire: str, count: int) -> None:
    """IOV_MAX is 1,024; the pieces here have 16 bytes."""
    with net(3, wire, "split") as made:
        made.mergeable = True
        made.start()
        at, left, chains = ROOM, count, []
        while left:
            pieces = min(left, 50)
            buffers = [Buffer(at + 17 * index, 16, writable=True) for index in range(pieces)]
            chains.append((made.wired.rx.add(*buffers, indirect=True), buffers))
            at, left = at + 17 * pieces, left - pieces
        made.wired.driver.store("QueueNotify", RECEIVE)
        beside = bytes(made.memory.mappings[0].view[ROOM - BASE :])[16 : 17 * count : 17]
        made.wired.put(bytes(16 * 1023 - HEADER + 1))
        which = 0 if made.stream and count > 1023 else 2  # delivered or dropped
        if count > 1023:
            assert wait(lambda: made.counters(RECEIVE)[which] == 1)
        else:
            made.wired.put(b"y")  # waits for the buffers that the first one lacks
            assert not wait(lambda: made.counters(RECEIVE) != (0, 0, 0), 0.1)
        assert not made.wired.driver.load("Status") & status.NEEDS_RESET
        now = bytes(made.memory.mappings[0].view[ROOM - BASE :])[16 : 17 * count : 17]
        assert now == beside


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_waits_for_the_buffers_that_it_lacks(wire: str, kind: str) -> None:
    """Room of buffers that were used is none, however many there were."""
    with net(10, wire, kind) as made:
        made.mergeable = True
        made.start()
        for number in range(40):
            made.deliver(made.offer([HEADER + 8, 40]), bytes([number]) * (9 + number % 30))
            if number % 10 == 9:
                made.deliver(made.offer([100]), made.random.randbytes(500), later=[60, 600])


@pytest.mark.parametrize("wire", WIRES)
def test_without_merging_a_packet_has_one_buffer_or_none(wire: str) -> None:
    with net(8, wire, "split") as made:
        made.mergeable = False
        made.start()
        first, second = made.offer([100]), made.offer([2000])
        made.note()
        made.wired.put(bytes(500))
        assert wait(lambda: made.counters(RECEIVE) == (0, 0, 1)), "it is dropped"
        assert made.wired.rx.used() == []
        made.wired.put(b"x" * 50)
        used: list[tuple[int, int]] = []
        assert wait(lambda: bool(gather(made.wired.rx, used)))
        assert used == [(first[0][0], HEADER + 50)]
        assert second


def test_what_a_tap_does_not_take_counts_as_dropped() -> None:
    with net(9, "tap", "split") as made:
        count = 60
        for _ in range(count):
            made.wired.tx.add(Buffer(ROOM, 60_000))
            made.wired.driver.store("QueueNotify", TRANSMIT)
            used: list[tuple[int, int]] = []
            assert wait(lambda used=used: bool(gather(made.wired.tx, used)))  # type: ignore[misc]
        sent, octets, dropped = made.counters(TRANSMIT)
        assert sent + dropped == count
        made.wired.wire.settimeout(0)
        found = 0
        with suppress(BlockingIOError):
            while made.wired.wire.recv(1 << 17):
                found += 1
        assert 0 < found == sent < count
        assert octets == found * (60_000 - HEADER)


@pytest.mark.parametrize("length", [0, MOST - HEADER + 1, MOST - HEADER + 2, 0xFFFF_FFFF])
def test_a_frame_that_no_stream_may_carry_ends_it(length: int) -> None:
    with net(4, "stream", "split") as made:
        made.offer([MOST])
        made.note()
        made.wired.wire.sendall(struct.pack(">I", length) + bytes(100))
        assert made.broken()
        made.check()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("length", [1, HEADER - 1])
def test_a_buffer_without_room_for_a_header_breaks_the_ring(wire: str, length: int) -> None:
    with net(5, wire, "split") as made:
        made.offer([length])
        made.note()
        assert made.broken()
        made.check()


@pytest.mark.parametrize("size", [0, 1, HEADER - 1, HEADER])
def test_a_packet_of_nothing_is_none(size: int) -> None:
    with net(6, "tap", "split") as made:
        chains = made.offer([100])
        made.wired.wire.send(bytes(size))
        made.deliver(chains, b"after nothing")
        assert made.counters(RECEIVE) == (1, 13, 0)


def test_a_stream_that_ends_breaks_the_device_and_can_be_reset() -> None:
    with net(7, "stream", "split") as made:
        made.offer([100])
        made.wired.wire.sendall(b"\0\0")
        made.wired.wire.shutdown(socket.SHUT_WR)
        assert made.broken()
