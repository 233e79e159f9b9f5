"""Which chains a dead process had: found and made available again, whatever it had done."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.guarded import GuardedArray
from tests.virtio.ring_driver import BASE, BUFFERS, SECOND, Buffer, Memory, SplitDriver
from tests.virtio.ring_driver import SIZE as MEMORY
from vmm._native import lib
from vmm.errors import HostError
from vmm.fd import EventFd
from vmm.virtio.queue import Areas, Format, MemoryMap, Queue
from vmm.virtio.vhost.backend import Ring
from vmm.virtio.vhost.inflight import Inflight

SIZE = 8


class Process:
    """A server of a ring from *base* on that uses chains in any order, without a look at idx."""

    def __init__(self, memory: Memory, driver: SplitDriver, base: int) -> None:
        self.memory, self.driver = memory, driver
        self.next = base
        self.used = base
        self.has: list[int] = []

    def take(self) -> int | None:
        """Take the next chain; return its head."""
        (available,) = self.memory.unpack(self.driver.areas.driver + 2, "H")
        if available == self.next:
            return None
        at = self.driver.areas.driver + 4 + 2 * (self.next % self.driver.size)
        (head,) = self.memory.unpack(at, "H")
        self.next = (self.next + 1) & 0xFFFF
        self.has.append(head)
        return head

    def use(self, which: int) -> None:
        """Use one of the chains it has."""
        head = self.has.pop(which % len(self.has))
        place = self.driver.areas.device + 4 + 8 * (self.used % self.driver.size)
        self.memory.pack(place, "II", head, 0)
        self.used = (self.used + 1) & 0xFFFF
        self.memory.pack(self.driver.areas.device + 2, "H", self.used)


class Ringed:
    """A ring, its driver, a process that serves it, and an `Inflight`."""

    def __init__(self, size: int = SIZE, base: int = 0) -> None:
        self.memory = Memory()
        self.driver = SplitDriver(self.memory, size)
        at_the_end = BASE + MEMORY - 6 - 2 * size, SECOND + 0x1_0000 - 8 - 8 * size
        self.driver.areas = Areas(BASE, *at_the_end)
        self.driver.avail = self.driver.seen = base
        self.memory.pack(self.driver.areas.driver + 2, "H", base)
        self.memory.pack(self.driver.areas.device + 2, "H", base)
        queue = Queue(MemoryMap(self.memory.guest), size, self.driver.areas, Format())
        self.bells = [EventFd() for _ in range(3)]
        kick, call, err = (bell.fileno() for bell in self.bells)
        areas = self.driver.areas
        packed = False
        self.ring = Ring(size, areas, queue.host_areas, packed, base, kick, call, err)
        self.process = Process(self.memory, self.driver, base)
        self.inflight = Inflight(self.ring)  # and not started: here, looks are taken by hand
        # Behind what is by head is a guard page.
        self.arrays = GuardedArray("uint64_t", size), GuardedArray("uint8_t", size)
        self.inflight.c.since, self.inflight.c.count = (array.c for array in self.arrays)

    def look(self) -> None:
        lib.pyvmm_inflight_look(self.inflight.c)

    def add(self) -> int:
        return self.driver.add(Buffer(BUFFERS, 16))

    def die(self) -> list[int]:
        """Replace the process; return the chains that the new one finds."""
        self.process = Process(self.memory, self.driver, self.inflight.requeue())
        found = []
        while (head := self.process.take()) is not None:
            found.append(head)
        return found

    def close(self) -> None:
        self.inflight.close()
        for array in self.arrays:
            array.close()
        for bell in self.bells:
            bell.close()
        self.memory.close()


@pytest.fixture
def ringed() -> Iterator[Ringed]:
    ringed = Ringed()
    yield ringed
    ringed.close()


def test_what_was_used_out_of_order_is_not_done_again(ringed: Ringed) -> None:
    heads = [ringed.add() for _ in range(4)]
    ringed.look()
    for _ in heads:
        ringed.process.take()
    ringed.process.use(1)
    ringed.process.use(2)  # the fourth
    assert ringed.die() == [heads[0], heads[2]]


def test_what_it_has_not_seen_is_found_as_well(ringed: Ringed) -> None:
    first = ringed.add()
    ringed.look()
    ringed.process.take()
    second = ringed.add()
    assert ringed.die() == [first, second]


def test_the_driver_goes_on_where_it_was(ringed: Ringed) -> None:
    heads = [ringed.add() for _ in range(SIZE)]
    ringed.look()
    for _ in heads:
        ringed.process.take()
    ringed.process.use(3)
    assert ringed.die() == heads[:3] + heads[4:]
    ringed.driver.used()
    again = ringed.add()
    assert again == heads[3]
    assert ringed.process.take() == again


def test_notifications_are_wanted_again(ringed: Ringed) -> None:
    ringed.memory.pack(ringed.driver.areas.device, "H", 1)
    assert not ringed.driver.wants_notify()
    ringed.die()
    assert ringed.driver.wants_notify()


MOVES = st.lists(
    st.one_of(
        st.just(("add", 0)),
        st.just(("add", 0)),
        st.just(("take", 0)),
        st.integers(0, SIZE).map(lambda which: ("use", which)),
        st.just(("use", 0)),
        st.just(("die", 0)),
    ),
    max_size=120,
)


@settings(max_examples=400)
@given(MOVES, st.sampled_from([0, 3, 0xFFFC]))
def test_each_chain_is_used_once_whatever_happens(moves: list[tuple[str, int]], base: int) -> None:
    """Everything in any order, also where the indices wrap."""
    ringed = Ringed(base=base)
    outstanding: list[int] = []
    for move, which in moves:
        if move == "add" and ringed.driver.free:
            outstanding.append(ringed.add())
            ringed.look()
        elif move == "take":
            ringed.process.take()
        elif move == "use" and ringed.process.has:
            ringed.process.use(which)
            for head, _ in ringed.driver.used():
                outstanding.remove(head)  # ValueError: used twice
        elif move == "die":
            assert ringed.die() == outstanding
    assert ringed.die() == outstanding
    ringed.close()


def test_a_look_that_came_too_late_is_known(ringed: Ringed) -> None:
    """One chain stays with the process, while others go round more often than the ring holds."""
    ringed.add()
    ringed.look()
    ringed.process.take()
    for _ in range(SIZE + 1):
        ringed.add()
        ringed.process.take()
        ringed.process.use(1)
        ringed.driver.used()
    with pytest.raises(HostError, match="not known which requests"):
        ringed.inflight.requeue()


def test_after_a_moment_of_rest_it_is_known_again(ringed: Ringed) -> None:
    for _ in range(3 * SIZE):
        ringed.add()
        ringed.process.take()
        ringed.process.use(0)
        ringed.driver.used()
    ringed.look()  # too late, but nothing is outstanding
    heads = [ringed.add(), ringed.add()]
    ringed.look()
    ringed.process.take()
    assert ringed.die() == heads


def test_what_was_outstanding_before_a_rest_is_forgotten(ringed: Ringed) -> None:
    first = ringed.add()
    ringed.look()
    for _ in range(3 * SIZE):
        ringed.process.take()
        ringed.process.use(0)
        ringed.driver.used()
        ringed.add()
    ringed.process.take()
    ringed.process.use(0)
    ringed.driver.used()
    ringed.look()  # too late, but nothing is outstanding
    heads = [ringed.add() for _ in range(SIZE)]
    assert first in heads
    ringed.look()
    ringed.process.take()
    assert ringed.die() == heads


def test_doorbells_are_passed_on_while_it_is_started(ringed: Ringed) -> None:
    bell, kick = ringed.bells[0], ringed.inflight.kick
    for _ in range(3):
        ringed.add()
        bell.signal()
        ringed.inflight.start()
        assert select.select([kick], [], [], 10)[0]
        assert ringed.inflight.c.avail == ringed.driver.avail, "it looks before it passes it on"
        ringed.inflight.stop()
        kick.drain()
        bell.signal()
        assert not select.select([kick], [], [], 0.05)[0]
