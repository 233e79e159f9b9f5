"""Devices that a back end serves: what it is asked, when, and what failures become."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.recorded import Recorded
from tests.virtio.mmio_driver import CONFIG, MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, PackedDriver, SplitDriver
from vmm.errors import HostError, KernelError
from vmm.memory import GuestMemory
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.queue import Areas, MemoryMap, Queue
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost.backend import PACKED_BASE, Ring
from vmm.virtio.vhost.device import VhostDevice

OWN = 2
"""The queue that the device serves itself."""

EVERYTHING = virtio.RING_FEATURES | virtio.F_VERSION_1


class Recorder:
    """A back end that records its calls, and fails where it is asked to."""

    def __init__(self, *, features: int = EVERYTHING, resets_rings: bool = True) -> None:
        self.told: list[str] = []
        self.rings: dict[int, Ring] = {}
        self.resets_rings = resets_rings
        self.can = features
        self.fails: set[str] = set()
        self.accepted = 0

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if what in self.fails:
            raise KernelError(f"--net tap: {what}()", 22)

    def features(self) -> int:
        return self.can

    def start(self, features: int, memory: GuestMemory) -> None:
        self.accepted = features
        assert next(iter(memory)).base == BASE
        self._tell("start")

    def start_ring(self, index: int, ring: Ring) -> None:
        self.rings[index] = ring
        self._tell(f"start {index}")

    def stop_ring(self, index: int) -> None:
        self.rings.pop(index, None)
        self._tell(f"stop {index}")

    def pause_ring(self, index: int) -> None:
        self._tell(f"pause {index}")

    def resume_ring(self, index: int) -> None:
        self._tell(f"resume {index}")

    def ring_error(self, index: int) -> str:
        return f"ring {index} is broken"

    def stop(self) -> None:
        self._tell("stop")

    def close(self) -> None:
        self.told.append("close")


class Served(VhostDevice):
    device_id = 42

    def is_ours(self, index: int) -> bool:
        return index == OWN

    def serve(self, index: int, queue: Queue) -> None:
        assert index == OWN
        for chain in queue.batch(queue.size):
            queue.push(chain.id, chain.write(chain.read(chain.readable)))


class Board(NamedTuple):
    device: Served
    backend: Recorder
    driver: MmioDriver
    events: Recorded

    def turn(self) -> None:
        for _, on_readable in self.device.readers():
            on_readable()

    def told(self) -> list[str]:
        told, self.backend.told = self.backend.told, []
        return told


def make(memory: Memory, events: Recorded, backend: Recorder) -> Board:
    device = Served("served", MemoryMap(memory.guest), events, [8, 8, 8], 1 << 5, backend=backend)
    return Board(device, backend, MmioDriver(MmioTransport(device)), events)


@pytest.fixture
def board(memory: Memory, events: Recorded) -> Iterator[Board]:
    board = make(memory, events, Recorder())
    with board.driver.transport:
        yield board


def areas(index: int) -> Areas:
    at = BASE + 0x1000 * index
    return Areas(at, at + 0x400, at + 0x800)


def bring_up(board: Board, queues: tuple[int, ...] = (0, 1, 2), features: int = 0) -> None:
    board.driver.negotiate(features)
    for index in queues:
        assert board.driver.set_queue(index, 8, areas(index))
    board.driver.add_status(status.DRIVER_OK)


def test_what_is_offered_is_what_the_back_end_can(memory: Memory, events: Recorded) -> None:
    for can in (virtio.F_VERSION_1, EVERYTHING, virtio.F_VERSION_1 | virtio.F_EVENT_IDX):
        for resets in (False, True):
            backend = Recorder(features=can, resets_rings=resets)
            with make(memory, events, backend).driver.transport as transport:
                offered = MmioDriver(transport).offered()
            rings = can & virtio.RING_FEATURES & ~virtio.F_RING_RESET
            reset = virtio.F_RING_RESET if resets else 0
            assert offered == 1 << 5 | virtio.F_VERSION_1 | rings | reset


def test_a_back_end_without_virtio_1_is_refused(memory: Memory, events: Recorded) -> None:
    with pytest.raises(HostError, match="served: its back end does not know VIRTIO 1"):
        make(memory, events, Recorder(features=virtio.F_EVENT_IDX))


def test_rings_start_with_driver_ok_and_stop_with_reset(board: Board) -> None:
    board.driver.negotiate(virtio.F_EVENT_IDX)
    for index in (0, 1, 2):
        board.driver.set_queue(index, 8, areas(index))
    assert board.told() == []
    board.driver.add_status(status.DRIVER_OK)
    assert board.told() == ["start", "start 0", "start 1"]
    assert board.backend.accepted == virtio.F_VERSION_1 | virtio.F_EVENT_IDX
    for _ in range(2):
        board.driver.store("Status", 0)
    assert board.told() == ["stop 0", "stop 1", "stop"]
    bring_up(board)
    assert board.told() == ["start", "start 0", "start 1"]
    board.driver.transport.close()
    board.driver.transport.close()
    assert board.told() == ["stop 0", "stop 1", "stop", "close", "close"]


def test_a_ring_is_told_with_its_places_and_eventfds(board: Board, memory: Memory) -> None:
    bring_up(board, (0, 1))
    ring = board.backend.rings[1]
    assert (ring.size, ring.guest, ring.packed, ring.base) == (8, areas(1), False, 0)
    first = next(iter(memory.guest))
    host = Areas(*(first.host_address + address - BASE for address in areas(1)))
    assert ring.host == host
    assert ring.kick == board.device.slots[1].doorbell.fileno()
    assert ring.call == board.driver.transport.interrupt.fileno()
    assert os.eventfd_read(ring.kick) == 1, "what came before was not looked at"


def test_packed_rings_begin_in_their_first_round(board: Board) -> None:
    bring_up(board, (0,), virtio.F_RING_PACKED)
    assert board.backend.rings[0].packed
    assert board.backend.rings[0].base == PACKED_BASE


@pytest.mark.parametrize(
    "wrong", [Areas(0, 0, 0), Areas(BASE + 1, BASE, BASE), Areas(BASE, BASE, 1 << 63)]
)
def test_a_back_end_never_hears_of_a_ring_that_is_not_guest_memory(
    board: Board, wrong: Areas
) -> None:
    board.driver.negotiate()
    assert not board.driver.set_queue(0, 8, wrong)
    board.driver.add_status(status.DRIVER_OK)
    assert board.driver.load("Status") & status.NEEDS_RESET
    assert board.told() == []
    assert board.events.names() == ["virtio-needs-reset"]


@pytest.mark.parametrize("failing", ["start", "start 0", "start 1"])
def test_a_failing_back_end_breaks_the_device_and_is_told(board: Board, failing: str) -> None:
    board.backend.fails.add(failing)
    bring_up(board)
    assert board.driver.load("Status") & status.NEEDS_RESET
    assert board.driver.load("InterruptStatus") & CONFIG, "the driver is told to look"
    ((name, fields),) = board.events.seen
    assert name == "virtio-needs-reset"
    assert fields["device"] == "served"
    assert str(fields["error"]).startswith(f"--net tap: {failing}()")
    assert board.backend.rings == {}
    board.backend.fails.clear()
    board.driver.store("Status", 0)
    assert board.told()[-1] == "stop"
    bring_up(board)
    assert board.driver.load("Status") == status.LIVE
    assert set(board.backend.rings) == {0, 1}


def test_descriptors_that_run_out_are_the_devices_end_and_no_more(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_index: int, _ring: Ring) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(board.backend, "start_ring", refuse)
    bring_up(board)
    assert board.driver.load("Status") & status.NEEDS_RESET
    assert board.events.seen[0][1]["error"] == "served: Too many open files"
    monkeypatch.undo()
    board.driver.store("Status", 0)
    bring_up(board)
    assert not board.driver.load("Status") & status.NEEDS_RESET


def test_a_back_end_that_fails_to_stop_is_an_event_and_no_more(board: Board) -> None:
    bring_up(board)
    board.backend.fails |= {"stop 1", "stop"}
    board.driver.store("Status", 0)
    assert board.events.names() == ["vhost-failed", "vhost-failed"]
    assert board.driver.load("Status") == 0


def test_a_ring_that_the_back_end_finds_broken_stops_the_device(board: Board) -> None:
    bring_up(board)
    os.eventfd_write(board.backend.rings[1].err, 1)
    board.turn()
    assert board.driver.load("Status") & status.NEEDS_RESET
    assert board.told() == ["start", "start 0", "start 1", "stop 0", "stop 1"]
    ((_, fields),) = board.events.seen
    assert fields == {"device": "served", "queue": 1, "error": "ring 1 is broken"}
    board.turn()
    assert len(board.events.seen) == 1
    board.driver.store("Status", 0)
    bring_up(board)
    board.turn()
    assert board.driver.load("Status") == status.LIVE, "the old error is no new one"


def test_one_ring_is_reset_and_the_others_go_on(board: Board) -> None:
    bring_up(board, (0, 1), virtio.F_RING_RESET)
    board.told()
    board.driver.store("QueueSel", 0)
    board.driver.store("QueueReset", 1)
    assert board.told() == ["stop 0"]
    board.driver.set_queue(0, 8, areas(0))
    assert board.told() == ["start 0"]
    assert set(board.backend.rings) == {0, 1}


def test_the_devices_own_queue_is_served_here(board: Board, memory: Memory) -> None:
    bring_up(board)
    board.turn()
    ring = SplitDriver(memory)
    ring.areas = areas(OWN)
    memory.guest.write(BUFFERS, b"hello")
    ring.add(Buffer(BUFFERS, 5), Buffer(BUFFERS + 16, 5, writable=True))
    board.driver.store("QueueNotify", OWN)
    board.turn()
    assert memory.guest.read(BUFFERS + 16, 5) == b"hello"
    assert [length for _, length in ring.used()] == [5]


def test_the_loop_leaves_the_back_ends_doorbells_alone(board: Board) -> None:
    bring_up(board)
    board.turn()
    for index in (0, 1):
        board.driver.store("QueueNotify", index)
        board.turn()
        assert os.eventfd_read(board.backend.rings[index].kick) == 2


def test_what_a_driver_does_to_its_own_queue_breaks_all(board: Board, memory: Memory) -> None:
    bring_up(board)
    ring = SplitDriver(memory)
    ring.areas = areas(OWN)
    ring.add(Buffer(0, 5))
    board.driver.store("QueueNotify", OWN)
    board.turn()
    assert board.driver.load("Status") & status.NEEDS_RESET
    assert board.backend.rings == {}


def test_failing_from_outside_breaks_it(board: Board) -> None:
    bring_up(board)
    board.device.fail(HostError("the other process is gone"))
    assert board.driver.load("Status") & status.NEEDS_RESET
    assert board.backend.rings == {}
    assert board.events.seen[0][1]["error"] == "the other process is gone"


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_nothing_stays_open(memory: Memory, events: Recorded) -> None:
    before = open_files()
    board = make(memory, events, Recorder())
    bring_up(board, features=virtio.F_RING_PACKED)
    PackedDriver(memory)
    board.driver.transport.close()
    assert open_files() == before


def test_a_pause_is_the_back_ends_and_keeps_our_own_queue_from_the_loop(
    board: Board, memory: Memory
) -> None:
    ring = SplitDriver(memory, 8, at=BASE + 0x2000)
    board.driver.negotiate()
    for index in (0, 1):
        board.driver.set_queue(index, 8, areas(index))
    board.driver.set_queue(OWN, 8, ring.areas)
    board.driver.add_status(status.DRIVER_OK)
    board.turn()
    board.told()
    board.device.pause()
    board.device.pause()
    assert board.told() == ["pause 0", "pause 1"]
    ring.add(Buffer(BUFFERS, 4, writable=True))
    board.driver.notify(OWN)
    board.turn()
    assert ring.used() == []
    board.device.resume()
    board.device.resume()
    assert board.told() == ["resume 0", "resume 1"]
    board.turn()
    assert len(ring.used()) == 1


def test_a_back_end_that_cannot_go_on_breaks_the_device(board: Board) -> None:
    bring_up(board)
    board.device.pause()
    board.backend.fails.add("resume 0")
    board.device.resume()
    assert board.driver.load("Status") & status.NEEDS_RESET


def test_a_back_end_that_fails_to_pause_is_an_event(board: Board) -> None:
    bring_up(board)
    board.backend.fails.add("pause 1")
    board.device.pause()
    assert board.events.names() == ["vhost-failed"]
