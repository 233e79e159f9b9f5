"""The balloon: which memory goes back to the host, and which stays."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES
from tests.virtio.mmio_driver import CONFIG, MmioDriver
from tests.virtio.ring_driver import (
    BASE,
    BUFFERS,
    HOLE,
    KINDS,
    SECOND,
    SIZE,
    Buffer,
    Memory,
    SplitDriver,
)
from vmm._native import lib
from vmm.config.balloon import check_balloon, parse_balloon
from vmm.errors import UserError
from vmm.events import COMPLAINTS
from vmm.memory import GuestMemory, Mapping
from vmm.virtio import status
from vmm.virtio.balloon import (
    F_DEFLATE_ON_OOM,
    F_PAGE_POISON,
    F_REPORTING,
    F_STATS_VQ,
    PAGE,
    TURN,
    Balloon,
)
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

INFLATE, DEFLATE, STATS = range(3)
NUM_PAGES, ACTUAL, POISON = 0x100, 0x104, 0x10C

DATA = BASE + 0xC_0000
"""The memory that the driver gives: 64 pages beyond rings and buffers."""


class Driver:
    """A driver with all queues; the memory at DATA is filled with ones."""

    def __init__(self, memory: Memory, balloon: Balloon) -> None:
        self.memory, self.balloon = memory, balloon
        self.mmio = MmioDriver(balloon.interrupts)  # type: ignore[arg-type]

    def start(self, features: int, kind: str = "split") -> None:
        self.memory.guest.write(BASE + 0x8_0000, bytes(0x4_0000))
        self.memory.guest.write(DATA, b"\1" * 0x4_0000)
        self.memory.guest.write(SECOND, b"\1" * 0x1_0000)
        wanted = [True, True, features & F_STATS_VQ, features & F_REPORTING]
        self.rings = [
            KINDS[kind](self.memory, at=BASE + 0x8_0000 + 0x1_0000 * n)
            for n, want in enumerate(wanted)
            if want
        ]
        form = FORMAT_FEATURES[self.rings[0].form]
        assert self.mmio.negotiate(form | features) & status.FEATURES_OK
        for index, ring in enumerate(self.rings):
            assert self.mmio.set_queue(index, ring.size, ring.areas)
        self.mmio.add_status(status.DRIVER_OK)

    def pages(self, queue: int, *addresses: int) -> None:
        """Name pages, by their addresses."""
        numbers = struct.pack(f"<{len(addresses)}I", *(each // PAGE for each in addresses))
        self.memory.guest.write(BUFFERS, numbers)
        self.rings[queue].add(Buffer(BUFFERS, len(numbers)))
        self.mmio.notify(queue)
        assert len(self.rings[queue].used()) == 1

    def gone(self, address: int, size: int = PAGE) -> bool:
        """Tell whether the memory went back to the host: it has zeroes now, not ones."""
        (kind,) = set(self.memory.guest.read(address, size))
        return kind == 0


@pytest.fixture
def make(memory: Memory, events: Recorded) -> Iterator[Callable[..., Driver]]:
    made: list[MmioTransport] = []

    def build(**options: object) -> Driver:
        balloon = Balloon("balloon", MemoryMap(memory.guest), events, **options)  # type: ignore[arg-type]
        made.append(MmioTransport(balloon))
        return Driver(memory, balloon)

    yield build
    for transport in made:
        transport.close()


def pages(count: int, first: int = DATA) -> list[int]:
    return [first + PAGE * n for n in range(count)]


# --- the balloon --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pages_that_are_given_go_back_to_the_host(make: Callable[..., Driver], kind: str) -> None:
    driver = make()
    driver.start(0, kind)
    driver.pages(INFLATE, *pages(4), *reversed(pages(4, DATA + 0x1_0000)), SECOND)
    for each in (*pages(4), *pages(4, DATA + 0x1_0000), SECOND):
        assert driver.gone(each)
    assert not driver.gone(DATA + 4 * PAGE)
    assert not driver.gone(SECOND + PAGE)
    assert driver.balloon.c.returned == 9 * PAGE
    assert driver.balloon.c.given == 9


def test_pages_that_are_taken_back_may_be_given_again(make: Callable[..., Driver]) -> None:
    driver = make()
    driver.start(0)
    for _ in range(3):
        driver.pages(INFLATE, DATA, DATA + PAGE)
        assert driver.gone(DATA)
        driver.pages(DEFLATE, DATA, DATA + PAGE)
        assert driver.balloon.c.given == 0
        driver.memory.guest.write(DATA, b"\1" * PAGE)
        assert not driver.gone(DATA)


def test_a_page_that_is_given_twice_goes_once(make: Callable[..., Driver]) -> None:
    driver = make()
    driver.start(0)
    driver.pages(INFLATE, DATA, DATA, DATA)
    assert driver.balloon.c.given == 1
    driver.pages(DEFLATE, DATA, DATA)
    assert driver.balloon.c.given == 0


def test_a_page_of_the_host_s_goes_when_all_of_it_was_given(make: Callable[..., Driver]) -> None:
    """As on a host of 64 KiB pages; the madvise of this one is no different."""
    driver = make()
    driver.balloon.c.page = 0x1_0000
    driver.start(0)
    driver.pages(INFLATE, *pages(15))
    assert not driver.gone(DATA)
    driver.pages(DEFLATE, DATA)
    driver.pages(INFLATE, DATA + 15 * PAGE)
    assert not driver.gone(DATA + PAGE)
    driver.pages(INFLATE, DATA)
    assert driver.gone(DATA, 0x1_0000)
    assert not driver.gone(DATA + 0x1_0000)


def test_what_is_no_ram_is_an_event(make: Callable[..., Driver], events: Recorded) -> None:
    driver = make()
    driver.start(0)
    driver.pages(
        INFLATE, 0, BASE - PAGE, BASE + SIZE, BASE + SIZE + HOLE - PAGE, 0xFFFF_FFFF * PAGE
    )
    assert events.seen == [("balloon-not-ram", {"device": "balloon", "pages": 5})]
    assert driver.balloon.c.given == 0
    driver.pages(DEFLATE, 0)
    assert len(events.seen) == 2


def test_a_list_without_end_ends(make: Callable[..., Driver]) -> None:
    """4 GiB of page numbers in one chain would keep all other devices waiting."""
    driver = make()
    driver.start(0)
    ring = driver.rings[INFLATE]
    ring.add(*[Buffer(DATA, 0x4_0000)] * 8)
    driver.mmio.notify(INFLATE)
    assert len(ring.used()) == 1
    assert driver.balloon.c.foreign == 0


def test_the_host_says_how_large_it_shall_be(make: Callable[..., Driver], events: Recorded) -> None:
    driver = make(size=3 << 20)
    driver.start(0)
    assert driver.mmio.transport.read(NUM_PAGES, 4) == 768
    driver.balloon.resize(1 << 20)
    assert driver.mmio.load("InterruptStatus") & CONFIG
    assert driver.mmio.transport.read(NUM_PAGES, 4) == 256
    driver.mmio.transport.write(ACTUAL, 4, 100)
    assert (driver.balloon.actual, driver.balloon.target) == (100 * PAGE, 1 << 20)
    assert events.names() == []
    for _ in range(3):
        driver.mmio.transport.write(ACTUAL, 4, 256)
    assert events.seen == [("balloon-reached", {"device": "balloon", "size": 1 << 20})]
    assert driver.mmio.transport.read(ACTUAL, 4) == 256


def test_a_guest_cannot_fill_the_log_by_starting_over(
    make: Callable[..., Driver], events: Recorded
) -> None:
    driver = make(size=1 << 20)
    for _ in range(2 * COMPLAINTS):
        driver.mmio.store("Status", 0)
        driver.mmio.transport.write(ACTUAL, 4, 256)
    assert events.names() == ["balloon-reached"] * COMPLAINTS
    driver.balloon.resize(2 << 20)
    driver.mmio.transport.write(ACTUAL, 4, 512)
    assert len(events.seen) == COMPLAINTS + 1, "what the host wants it hears of"


def test_a_turn_has_a_bound() -> None:
    """Each page may cost a call of madvise(2), and the loop has other devices."""
    assert TURN * lib.PYVMM_BALLOON_MOST_PFNS <= 1 << 14
    assert lib.PYVMM_BALLOON_MOST_PFNS >= 1024, "what drivers name at once"


def test_other_devices_get_their_turn(make: Callable[..., Driver]) -> None:
    """A chain can name 64 MiB page by page: that takes a while."""
    driver = make()
    driver.start(0)
    driver.memory.pack(BUFFERS, "I", DATA // PAGE)
    ring = driver.rings[INFLATE]
    for _ in range(TURN + 1):
        ring.add(Buffer(BUFFERS, 4))
    driver.mmio.notify(INFLATE)
    assert len(ring.used()) == TURN
    driver.mmio.turn()
    assert len(ring.used()) == 1


def test_a_reset_empties_it(make: Callable[..., Driver]) -> None:
    driver = make(size=1 << 20)
    driver.start(0)
    driver.pages(INFLATE, DATA)
    driver.mmio.transport.write(ACTUAL, 4, 1)
    driver.mmio.store("Status", 0)
    assert driver.balloon.c.given == driver.balloon.actual == 0
    assert driver.balloon.target == 1 << 20
    driver.start(0)
    driver.pages(INFLATE, DATA)
    assert driver.gone(DATA)


# --- free page reporting ------------------------------------------------------------------------


@pytest.mark.parametrize("features", [F_REPORTING, F_REPORTING | F_STATS_VQ])
def test_free_memory_goes_back(make: Callable[..., Driver], features: int) -> None:
    """Queues of features that were not negotiated leave no gap."""
    driver = make()
    driver.start(features)
    queue = len(driver.rings) - 1
    free = [Buffer(DATA, 0x8000, writable=True), Buffer(SECOND, 0x2000, writable=True)]
    driver.rings[queue].add(*free, indirect=True)
    driver.mmio.notify(queue)
    assert len(driver.rings[queue].used()) == 1
    assert driver.gone(DATA, 0x8000)
    assert driver.gone(SECOND, 0x2000)
    assert not driver.gone(DATA + 0x8000)
    assert not driver.gone(SECOND + 0x2000)


def test_only_whole_pages_go(make: Callable[..., Driver]) -> None:
    driver = make()
    driver.start(F_REPORTING)
    driver.rings[2].add(
        Buffer(DATA + 1, 3 * PAGE - 2, writable=True), Buffer(SECOND, 100, writable=True)
    )
    driver.mmio.notify(2)
    assert [driver.gone(each) for each in pages(3)] == [False, True, False]
    assert not driver.gone(SECOND)


@pytest.mark.parametrize(("poison", "gone"), [(0, True), (0xAAAA_AAAA, False)])
def test_what_the_guest_poisoned_stays(
    make: Callable[..., Driver], poison: int, *, gone: bool
) -> None:
    driver = make()
    driver.start(F_REPORTING | F_PAGE_POISON)
    driver.mmio.transport.write(POISON, 4, poison)
    assert driver.mmio.transport.read(POISON, 4) == poison
    driver.rings[2].add(Buffer(DATA, PAGE, writable=True))
    driver.mmio.notify(2)
    assert driver.gone(DATA) is gone


def test_what_is_pinned_stays(make: Callable[..., Driver]) -> None:
    driver = make(pinned=True)
    assert not driver.mmio.offered() & F_REPORTING
    driver.start(0)
    driver.pages(INFLATE, DATA)
    assert not driver.gone(DATA)
    assert driver.balloon.c.given == 1


def test_shared_memory_is_lost_by_all_who_map_it(events: Recorded) -> None:
    with Mapping.memfd(1 << 20) as mapping:
        region = mapping.region(BASE)
        memory = MemoryMap(GuestMemory([region]))
        other = mmap.mmap(region.fd, 1 << 20)
        with Balloon("balloon", memory, events) as balloon, MmioTransport(balloon) as transport:
            driver = MmioDriver(transport)
            ring = SplitDriver(_Flat(memory.memory))
            driver.start(ring.size, ring.areas)
            memory.memory.write(DATA, b"\1" * 2 * PAGE)
            memory.memory.write(BUFFERS, struct.pack("<I", DATA // PAGE))
            ring.add(Buffer(BUFFERS, 4))
            driver.notify()
            assert set(other[DATA - BASE : DATA - BASE + PAGE]) == {0}
            assert set(other[DATA - BASE + PAGE : DATA - BASE + 2 * PAGE]) == {1}
        other.close()


class _Flat(Memory):
    """Guest memory that somebody else owns."""

    def __init__(self, guest: GuestMemory) -> None:
        self.guest, self.mappings = guest, []


# --- statistics ---------------------------------------------------------------------------------


def tell(driver: Driver, *statistics: tuple[int, int]) -> None:
    text = b"".join(struct.pack("<HQ", *each) for each in statistics)
    driver.memory.guest.write(BUFFERS, text)
    driver.rings[STATS].add(Buffer(BUFFERS, len(text)))
    driver.mmio.notify(STATS)


def test_statistics_are_events_when_asked_for(
    make: Callable[..., Driver], events: Recorded
) -> None:
    driver = make(size=PAGE)
    driver.start(F_STATS_VQ)
    tell(driver, *((tag, tag) for tag in range(50, 65)), (4, 1000), (5, 2000), (99, 1))
    ((name, fields),) = events.seen
    assert name == "balloon-stats"
    assert fields == {
        "device": "balloon",
        "target": PAGE,
        "actual": 0,
        "free": 1000,
        "total": 2000,
    }
    assert driver.rings[STATS].used() == [], "it stays until we want to know more"
    driver.balloon.ask()
    driver.mmio.turn()
    assert len(driver.rings[STATS].used()) == 1
    assert driver.mmio.interrupts()
    tell(driver, (4, 10))
    assert events.seen[1][1]["free"] == 10


def test_statistics_that_nobody_asked_for_are_no_events(
    make: Callable[..., Driver], events: Recorded
) -> None:
    driver = make()
    driver.start(F_STATS_VQ)
    for round_ in range(20):
        tell(driver, (4, 1))
        assert len(driver.rings[STATS].used()) == (1 if round_ else 0)
    assert events.names() == ["balloon-stats"]


def test_reaching_the_size_asks_for_statistics(make: Callable[..., Driver]) -> None:
    driver = make(size=PAGE)
    driver.start(F_STATS_VQ)
    tell(driver, (4, 1))
    driver.mmio.transport.write(ACTUAL, 4, 1)
    driver.mmio.turn()
    assert len(driver.rings[STATS].used()) == 1


def test_a_reset_forgets_the_buffer(make: Callable[..., Driver], events: Recorded) -> None:
    driver = make()
    for _ in range(3):
        driver.start(F_STATS_VQ)
        tell(driver, (4, 1))
        driver.mmio.store("Status", 0)
        driver.balloon.ask()
    assert events.names() == ["balloon-stats"] * 3


# --- what it is ---------------------------------------------------------------------------------


def test_it_gives_way_to_a_guest_in_need(make: Callable[..., Driver]) -> None:
    driver = make()
    assert driver.mmio.load("DeviceID") == 5
    assert driver.mmio.offered() & F_DEFLATE_ON_OOM


def test_options() -> None:
    assert parse_balloon(False, None) is None  # noqa: FBT003
    assert parse_balloon(True, None) == 0  # noqa: FBT003
    assert parse_balloon(False, "64M") == 64 << 20  # noqa: FBT003
    with pytest.raises(UserError, match=r"^--balloon-size: 'x' is not a size"):
        parse_balloon(True, "x")  # noqa: FBT003
    check_balloon(511 << 20, 512 << 20)
    with pytest.raises(UserError, match=r"^--balloon-size: 512 MiB are not less"):
        check_balloon(512 << 20, 512 << 20)
