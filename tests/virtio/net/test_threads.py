"""Packets through threads in C: from rings to a wire and back."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.recorded import Recorded
from tests.virtio.mmio_driver import USED
from tests.virtio.net.net_driver import DATA, HEADER, MAC, RECEIVE, SIZE, TRANSMIT, Wired, wait
from tests.virtio.ring_driver import KINDS, Buffer, Memory
from vmm._native import lib
from vmm.virtio import status

FRAME = bytes.fromhex("ffffffffffff") + MAC + bytes.fromhex("88b5") + bytes(range(100))


@pytest.fixture(params=["tap", "stream"])
def wired(request: pytest.FixtureRequest, memory: Memory, events: Recorded) -> Iterator[Wired]:
    wired = Wired(memory, events, stream=request.param == "stream")
    yield wired
    wired.close()


@pytest.fixture
def tap(memory: Memory, events: Recorded) -> Iterator[Wired]:
    wired = Wired(memory, events)
    yield wired
    wired.close()


@pytest.fixture
def stream(memory: Memory, events: Recorded) -> Iterator[Wired]:
    wired = Wired(memory, events, stream=True)
    yield wired
    wired.close()


def frames(wired: Wired, data: bytes) -> bytes:
    """Return what the wire carries for a frame with an empty header."""
    return data if wired.stream else bytes(HEADER) + data


# --- from the guest -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_go_out(wired: Wired, kind: str) -> None:
    wired.start(kind)
    for number in range(3 * SIZE):
        frame = FRAME + bytes([number])
        wired.send(frame, cut=(HEADER, 1, 30)[number % 3])
        assert wired.get() == frames(wired, frame)
        assert wired.sent()
    assert wired.driver.load("InterruptStatus") & USED


def test_many_buffers_and_a_large_frame_are_one(wired: Wired) -> None:
    wired.start()
    data = os.urandom(SIZE * 1000 - HEADER)
    wired.memory.guest.write(DATA, bytes(HEADER) + data)
    wired.tx.add(*(Buffer(DATA + 1000 * part, 1000) for part in range(SIZE)))
    wired.driver.store("QueueNotify", TRANSMIT)
    assert wired.get() == frames(wired, data)
    assert wired.sent()


def test_a_tap_gets_the_header_as_the_driver_wrote_it(tap: Wired) -> None:
    tap.start()
    header = bytes([1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0])
    tap.send(FRAME, header)
    assert tap.get() == header + FRAME


def test_no_header_no_request(wired: Wired, events: Recorded) -> None:
    wired.start()
    wired.tx.add(Buffer(DATA, HEADER - 1))
    wired.driver.store("QueueNotify", TRANSMIT)
    assert wait(lambda: bool(wired.backend._threads[TRANSMIT].result))
    wired.device.attend()
    assert wired.driver.load("Status") & status.NEEDS_RESET
    assert events.seen[0][1]["error"] == "a chain is too short for a request"
    wired.start()
    wired.send(FRAME)
    assert wired.get() == frames(wired, FRAME)


def test_what_a_stream_cannot_carry_is_dropped(stream: Wired) -> None:
    stream.start()
    stream.memory.guest.write(DATA, bytes(HEADER))
    stream.tx.add(Buffer(DATA, HEADER))
    stream.tx.add(Buffer(DATA, 0x1_0000), Buffer(DATA, 0x1_0000))
    stream.driver.store("QueueNotify", TRANSMIT)
    ring = stream.backend._threads[TRANSMIT].c
    assert wait(lambda: ring.dropped == 2)
    assert wait(lambda: len(stream.tx.used()) == 2)
    stream.send(FRAME)
    assert stream.get() == FRAME


def test_a_wire_that_does_not_take_it_drops_it(tap: Wired) -> None:
    """A TAP does so while its interface is down."""
    tap.start()
    tap.wire.close()
    tap.send(FRAME)
    assert tap.sent()
    assert tap.backend._threads[TRANSMIT].c.dropped == 1


def test_a_full_stream_is_waited_for_and_loses_nothing(stream: Wired) -> None:
    stream.start()
    data = [os.urandom(20_000) for _ in range(50)]
    stream.memory.guest.write(DATA, b"".join(data)[: 12 * 20_000])
    stream.memory.guest.write(DATA - HEADER, bytes(HEADER))
    for number in range(30):
        at = DATA + 20_000 * (number % 12)
        stream.tx.add(Buffer(DATA - HEADER, HEADER), Buffer(at, 20_000))
    stream.driver.store("QueueNotify", TRANSMIT)
    time.sleep(0.05)  # the socket's buffer is full by now
    for number in range(30):
        assert stream.get() == data[number % 12]


def test_a_frame_that_a_reset_cut_in_two_arrives_whole(stream: Wired) -> None:
    stream.start()
    data = os.urandom(60_000)
    stream.memory.guest.write(DATA, bytes(HEADER) + data)
    for _ in range(20):
        stream.tx.add(Buffer(DATA, HEADER + len(data)))
    stream.driver.store("QueueNotify", TRANSMIT)
    time.sleep(0.05)
    stream.stop()
    stream.start()
    arrived = 0
    stream.wire.settimeout(0.5)
    with suppress(TimeoutError):
        while True:
            assert stream.get() == data
            arrived += 1
    assert 0 < arrived < 20
    stream.wire.settimeout(10)
    stream.send(FRAME)
    assert stream.get() == FRAME


# --- to the guest -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_in(wired: Wired, kind: str) -> None:
    wired.start(kind)
    for number in range(3 * SIZE):
        frame = FRAME + bytes([number])
        wired.offer(2000)
        wired.put(frame)
        assert wired.take() == bytes(HEADER - 2) + b"\1\0" + frame
    assert wired.driver.load("InterruptStatus") & USED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_frame_takes_as_many_buffers_as_it_needs(wired: Wired, kind: str, parts: int) -> None:
    wired.start(kind)
    data = os.urandom(9000)
    wired.offer(*[1536] * 12, parts=parts)
    wired.put(data)
    wired.put(data[:100])
    packet = wired.take()
    assert packet is not None
    assert packet[HEADER - 2 : HEADER] == b"\6\0"
    assert packet[HEADER:] == data
    packet = wired.take()
    assert packet is not None
    assert packet[HEADER - 2 :] == b"\1\0" + data[:100]


def test_a_frame_waits_for_the_buffers_it_lacks(wired: Wired) -> None:
    wired.start()
    data = os.urandom(9000)
    wired.offer(*[1536] * 3)
    wired.put(data)
    time.sleep(0.02)
    assert not wired.rx.used()
    places = wired.places
    wired.offer(*[1536] * 3)
    wired.places = {**wired.places, **places}
    packet = wired.take()
    assert packet is not None
    assert len(packet) == HEADER + 9000


def test_a_frame_that_lay_where_buffers_came_later_is_whole(wired: Wired) -> None:
    wired.start()
    data = os.urandom(5000)
    wired.offer(100)
    wired.put(data)
    time.sleep(0.02)
    first = wired.places
    places: dict[int, list[Buffer]] = {}
    for number in range(4):
        buffer = Buffer(0x4000_0000 + 0x8_0000 + 0x1000 * number, 1536, writable=True)
        places[wired.rx.add(buffer)] = [buffer]
    wired.driver.store("QueueNotify", RECEIVE)
    wired.places = {**first, **places}
    packet = wired.take()
    assert packet is not None
    assert packet[HEADER:] == data


def test_without_merging_a_frame_has_one_buffer_or_is_dropped(wired: Wired) -> None:
    wired.start(features=0)
    wired.offer(1000, 1000)
    wired.put(bytes(2000))
    wired.put(FRAME)
    packet = wired.take()
    assert packet == bytes(HEADER - 2) + b"\1\0" + FRAME
    assert wired.backend._threads[RECEIVE].c.dropped == 1


def test_too_many_small_buffers_are_no_room(wired: Wired) -> None:
    wired.start()
    wired.offer(*[HEADER] * SIZE)
    wired.put(bytes(SIZE * HEADER))
    wired.put(FRAME[:30])
    packet = wired.take()
    assert packet is not None
    assert packet[HEADER:] == FRAME[:30]
    assert wired.backend._threads[RECEIVE].c.dropped == 1


def test_the_bytes_beside_buffers_stay(wired: Wired) -> None:
    wired.start()
    at = 0x4000_0000 + 0x6_0000
    wired.memory.guest.write(at, b"\xaa" * 0x8000)
    wired.offer(*[1536] * 8)
    wired.put(b"\x55" * 9000)
    assert wired.take()
    kept = wired.memory.guest.read(at, 8 * 1544)
    for number in range(8):
        assert kept[number * 1544 + 1536 : (number + 1) * 1544] == b"\xaa" * 8


def test_a_buffer_has_room_for_a_header(wired: Wired, events: Recorded) -> None:
    wired.start()
    wired.offer(HEADER - 1)
    assert wait(lambda: bool(wired.backend._threads[RECEIVE].result))
    wired.device.attend()
    assert wired.driver.load("Status") & status.NEEDS_RESET
    assert events.names() == ["virtio-needs-reset"]


def test_the_tap_says_what_is_left_to_do(tap: Wired) -> None:
    tap.start()
    tap.offer(2000)
    header = bytes([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0])
    tap.put(FRAME, header)
    packet = tap.take()
    assert packet is not None
    assert packet[: HEADER - 2] == header[: HEADER - 2]


def test_a_stream_may_come_byte_by_byte(stream: Wired) -> None:
    stream.start()
    stream.offer(2000)
    for byte in len(FRAME).to_bytes(4, "big") + FRAME:
        stream.wire.send(bytes([byte]))
    packet = stream.take()
    assert packet is not None
    assert packet[HEADER:] == FRAME


@pytest.mark.parametrize("length", [0, lib.PYVMM_NET_MOST, 0xFFFF_FFFF])
def test_a_stream_that_makes_no_sense_ends(stream: Wired, events: Recorded, length: int) -> None:
    stream.start()
    stream.offer(2000)
    stream.wire.send(length.to_bytes(4, "big"))
    assert wait(lambda: bool(stream.backend._threads[RECEIVE].result))
    stream.device.attend()
    ((_, fields),) = events.seen
    assert fields["error"] == "the other end of the network is gone: Protocol error"


def test_a_stream_that_ends_breaks_the_device(stream: Wired, events: Recorded) -> None:
    stream.start()
    stream.offer(2000)
    stream.wire.close()
    assert wait(lambda: bool(stream.backend._threads[RECEIVE].result))
    stream.device.attend()
    assert stream.driver.load("Status") & status.NEEDS_RESET
    ((_, fields),) = events.seen
    assert fields["error"] == "the other end of the network is gone: Broken pipe"


# --- start and stop -----------------------------------------------------------------------------


def test_resets_end_threads_at_once_whatever_they_wait_for(wired: Wired) -> None:
    for buffers in (0, 1):
        wired.start()
        if buffers:
            wired.offer(2000)
        time.sleep(0.01)
        began = time.monotonic()
        wired.stop()
        assert time.monotonic() - began < 1
        assert not wired.backend._threads
    wired.start()
    wired.send(FRAME)
    assert wired.get() == frames(wired, FRAME)


def test_threads_without_work_take_no_time(wired: Wired) -> None:
    wired.start()
    wired.offer(2000)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_interrupts_come_only_when_they_are_wanted(wired: Wired, kind: str) -> None:
    wired.start(kind)
    for wanted in (True, False):
        if not wanted:
            wired.rx.suppress()
            wired.tx.suppress()
        wired.driver.interrupts()
        for number in range(1, 4):
            wired.send(FRAME)
            assert wired.get()
            assert wired.sent()
            wired.offer(2000)
            wired.put(FRAME)
            assert wired.take()
            if wanted:
                assert wait(lambda: wired.driver.interrupts() > 0), number
        time.sleep(0.02)
        assert wired.driver.interrupts() <= wanted


# --- pause ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_device_moves_nothing_and_loses_nothing(wired: Wired, kind: str) -> None:
    """Buffers that the receiver had popped are used by the same receiver after the pause."""
    wired.start(kind)
    wired.offer(*[2048] * 32)
    for number in range(16):
        frame = FRAME + bytes([number])
        wired.put(frame)
        assert (wired.take() or b"")[HEADER:] == frame
        wired.device.pause()
        wired.put(frame)
        wired.send(frame)
        time.sleep(0.01)
        assert not wired.rx.used()
        assert not wired.tx.used()
        wired.device.resume()
        assert (wired.take() or b"")[HEADER:] == frame
        assert wired.get() == frames(wired, frame)
        assert wired.sent()


def test_a_frame_that_was_cut_by_a_pause_is_finished_after_it(stream: Wired) -> None:
    """What passt reads and writes is whole frames, whatever a pause leaves of one."""
    stream.start()
    stream.offer(*[2048] * 8)
    stream.wire.sendall(struct.pack(">I", len(FRAME)) + FRAME[:20])
    time.sleep(0.05)
    stream.device.pause()
    stream.wire.sendall(FRAME[20:])
    stream.device.resume()
    assert (stream.take() or b"")[HEADER:] == FRAME
