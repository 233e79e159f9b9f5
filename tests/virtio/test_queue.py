"""Virtqueues, from both sides: what a driver may do, and what none may."""

from __future__ import annotations

import pytest

from tests.virtio.ring_driver import (
    AVAIL,
    BASE,
    BUFFERS,
    INDIRECT,
    KINDS,
    NEXT,
    SECOND,
    SIZE,
    TABLES,
    Buffer,
    Memory,
    PackedDriver,
    SplitDriver,
)
from vmm._native import lib
from vmm.virtio.queue import Areas, Chain, Format, MemoryMap, Queue, RingError, Segment

Driver = SplitDriver | PackedDriver


@pytest.fixture(params=KINDS)
def driver(request: pytest.FixtureRequest, memory: Memory) -> Driver:
    return KINDS[request.param](memory)


def queue(driver: Driver) -> Queue:
    return Queue(MemoryMap(driver.memory.guest), driver.size, driver.areas, driver.form)


def with_events(driver: Driver) -> tuple[Driver, Queue]:
    """Return *driver*, and a queue for it, with EVENT_IDX."""
    driver.form = driver.form._replace(event_idx=True)
    return driver, queue(driver)


def pop(queue: Queue) -> Chain:
    chain = queue.pop()
    assert chain is not None
    return chain


def test_an_empty_queue_has_nothing(driver: Driver) -> None:
    assert queue(driver).pop() is None


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_comes_as_it_was_made_and_goes_back(driver: Driver, *, indirect: bool) -> None:
    ring = queue(driver)
    driver.memory.guest.write(BUFFERS, b"request")
    identity = driver.add(
        Buffer(BUFFERS, 7),
        Buffer(BUFFERS + 0x100, 16, writable=True),
        Buffer(BUFFERS + 0x200, 1, writable=True),
        indirect=indirect,
    )
    chain = pop(ring)
    assert (chain.id, chain.readable, chain.writable) == (identity, 7, 17)
    assert chain.read(100) == b"request"
    assert chain.read(3, offset=2) == b"que"
    assert chain.write(b"0123456789abcdefXYZ") == 17
    assert driver.memory.guest.read(BUFFERS + 0x200, 1) == b"X"
    assert ring.c.in_flight == (1 if indirect or not driver.form.packed else 3)
    ring.push(chain.id, 17)
    assert driver.used() == [(identity, 17)]
    assert ring.c.in_flight == 0
    assert ring.pop() is None


def test_a_chain_says_where_its_buffers_are(driver: Driver) -> None:
    ring = queue(driver)
    driver.add(Buffer(BUFFERS, 7), Buffer(SECOND, 9, writable=True))
    base = [region.host_address for region in driver.memory.guest]
    assert list(pop(ring)) == [
        Segment(BUFFERS, 7, writable=False, host=base[0] + BUFFERS - BASE),
        Segment(SECOND, 9, writable=True, host=base[1]),
    ]


def test_queues_go_round_and_chains_come_back_in_any_order(driver: Driver) -> None:
    ring = queue(driver)
    for turn in range(200):
        lengths = [1 + (turn + index) % 3 for index in range(2)]
        made = [driver.add(*[Buffer(BUFFERS, 8, writable=True)] * length) for length in lengths]
        popped = [pop(ring).id for _ in made]
        assert popped == made
        for identity in reversed(popped):
            ring.push(identity, turn)
        assert driver.used() == [(identity, turn) for identity in reversed(made)]


def test_a_full_ring_is_all_popped(driver: Driver) -> None:
    ring = queue(driver)
    made = [driver.add(Buffer(BUFFERS, 1)) for _ in range(driver.size)]
    assert [chain.id for chain in ring.batch(100)] == made


def test_a_batch_ends_where_it_was_told_to(driver: Driver) -> None:
    ring = queue(driver)
    for _ in range(5):
        driver.add(Buffer(BUFFERS, 1))
    assert len([chain.id for chain in ring.batch(3)]) == 3
    assert ring.enable_notify()
    assert len([chain.id for chain in ring.batch(3)]) == 2
    assert not ring.enable_notify()


def test_a_split_index_goes_round_at_2_to_the_16(memory: Memory) -> None:
    driver = SplitDriver(memory, size=1)
    ring = queue(driver)
    for _ in range(0x10002):
        memory.pack(driver.areas.descriptors, "QIHH", BUFFERS, 1, 0, 0)
        driver.offer(0)
        ring.push(pop(ring).id, 0)
        assert ring.should_interrupt()
    assert memory.unpack(driver.areas.device + 2, "H") == (2,)


def test_direct_descriptors_may_lead_to_an_indirect_table(memory: Memory) -> None:
    """2.7.5.3.2: zero or more, followed by one with INDIRECT."""
    driver = SplitDriver(memory)
    ring = queue(driver)
    table = driver.table(Buffer(BUFFERS + 8, 2), Buffer(BUFFERS + 16, 4, writable=True))
    driver.describe(driver.areas.descriptors, 0, Buffer(BUFFERS, 1), NEXT, 5)
    driver.describe(driver.areas.descriptors, 5, table._replace(writable=True), INDIRECT)
    driver.offer(0)
    chain = pop(ring)
    assert (chain.readable, chain.writable) == (3, 4)


def test_an_indirect_table_may_be_longer_than_the_queue(driver: Driver) -> None:
    ring = queue(driver)
    driver.add(*[Buffer(BUFFERS, 2)] * 60, indirect=True)
    assert pop(ring).readable == 120


def test_a_packed_queue_has_any_size_and_any_ids(memory: Memory) -> None:
    driver = PackedDriver(memory, size=7)
    driver.ids = 0xFFF0
    ring = queue(driver)
    for _ in range(100):
        made = [driver.add(*[Buffer(BUFFERS, 1)] * 3), driver.add(*[Buffer(BUFFERS, 1)] * 2)]
        for identity in made:
            assert pop(ring).id == identity
            ring.push(identity, 1)
        assert [identity for identity, _ in driver.used()] == made


def test_a_buffer_may_reach_from_one_region_into_the_next(memory: Memory) -> None:
    joined = MemoryMap(memory.guest)
    joined._ranges[1].base = BASE + SIZE  # as if there were no hole
    driver = SplitDriver(memory)
    ring = Queue(joined, driver.size, driver.areas, driver.form)
    driver.add(Buffer(BASE + SIZE - 4, 12))
    assert [(part.address, part.length) for part in pop(ring)] == [
        (BASE + SIZE - 4, 4),
        (BASE + SIZE, 8),
    ]


# --- notifications ------------------------------------------------------------------------------


def test_a_device_says_whether_it_wants_notifications(driver: Driver) -> None:
    ring = queue(driver)
    assert not ring.enable_notify()
    driver.add(Buffer(BUFFERS, 1))
    assert driver.wants_notify()
    for _ in ring.batch(1):
        assert not driver.wants_notify()
    assert not ring.enable_notify()
    assert driver.wants_notify()


def test_what_came_before_notifications_were_on_is_not_missed(driver: Driver) -> None:
    ring = queue(driver)
    driver.add(Buffer(BUFFERS, 1))
    assert ring.enable_notify()


def test_with_event_idx_only_the_next_chain_is_notified(driver: Driver) -> None:
    driver, ring = with_events(driver)
    for _ in range(50):
        ring.enable_notify()
        driver.add(Buffer(BUFFERS, 1))
        assert driver.wants_notify()
        driver.add(Buffer(BUFFERS, 1), Buffer(BUFFERS, 1))
        assert not driver.wants_notify()
        for chain in list(ring.batch(9)):
            assert chain
        for identity in list(driver.chains):
            ring.push(identity, 0)
        driver.used()


def test_an_interrupt_is_wanted_unless_the_driver_says_otherwise(driver: Driver) -> None:
    ring = queue(driver)
    assert not ring.should_interrupt()
    for wanted in (True, False):
        driver.add(Buffer(BUFFERS, 1))
        ring.push(pop(ring).id, 0)
        assert ring.should_interrupt() == wanted
        assert not ring.should_interrupt(), "it was asked for already"
        driver.suppress()


def test_with_event_idx_the_interrupt_comes_when_the_driver_said(driver: Driver) -> None:
    driver, ring = with_events(driver)
    for _ in range(100):
        driver.suppress(event=2)
        for wanted in (False, True, False):
            driver.add(Buffer(BUFFERS, 1))
            ring.push(pop(ring).id, 0)
            assert ring.should_interrupt() == wanted
        driver.used()


def test_with_event_idx_a_batch_that_includes_the_place_interrupts(driver: Driver) -> None:
    driver, ring = with_events(driver)
    for _ in range(100):
        driver.suppress(event=2)
        for _ in range(3):
            driver.add(Buffer(BUFFERS, 1))
            ring.push(pop(ring).id, 0)
        assert ring.should_interrupt()
        driver.used()


# --- what no driver may do ----------------------------------------------------------------------


def wrong(ring: Queue) -> int:
    """Return what is wrong with the ring; it stays so."""
    with pytest.raises(RingError) as caught:
        ring.pop()
    with pytest.raises(RingError) as again:
        ring.pop()
    assert again.value.code == caught.value.code
    assert not ring.enable_notify()
    assert not ring.should_interrupt()
    return caught.value.code


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize(
    ("buffers", "error"),
    [
        ([Buffer(0, 1)], lib.PYVMM_RING_ADDRESS),
        ([Buffer(BASE - 1, 2)], lib.PYVMM_RING_ADDRESS),
        ([Buffer(BASE + SIZE - 1, 2)], lib.PYVMM_RING_ADDRESS),
        ([Buffer(BASE + SIZE, 1)], lib.PYVMM_RING_ADDRESS),
        ([Buffer(SECOND, 0xFFFF_FFFF)], lib.PYVMM_RING_ADDRESS),
        ([Buffer((1 << 64) - 1, 2)], lib.PYVMM_RING_ADDRESS),
        ([Buffer(BUFFERS, 0)], lib.PYVMM_RING_EMPTY),
        ([Buffer(BUFFERS, 1, writable=True), Buffer(BUFFERS, 1)], lib.PYVMM_RING_ORDER),
    ],
)
def test_bad_buffers_break_the_ring(
    driver: Driver, *, indirect: bool, buffers: list[Buffer], error: int
) -> None:
    ring = queue(driver)
    driver.add(*buffers, indirect=indirect)
    assert wrong(ring) == error


def test_indirect_tables_must_have_been_agreed_upon(driver: Driver) -> None:
    driver.form = driver.form._replace(indirect=False)
    ring = queue(driver)
    driver.add(Buffer(BUFFERS, 1), indirect=True)
    assert wrong(ring) == lib.PYVMM_RING_INDIRECT


@pytest.mark.parametrize("length", [0, 1, 15, 17])
def test_indirect_tables_have_whole_descriptors(driver: Driver, length: int) -> None:
    ring = queue(driver)
    mark = AVAIL if driver.form.packed else 0
    driver.memory.pack(
        driver.areas.descriptors, "QIHH", TABLES, length, *marked(driver, INDIRECT | mark)
    )
    offer(driver)
    assert wrong(ring) == lib.PYVMM_RING_TABLE


def marked(driver: Driver, flags: int) -> tuple[int, int]:
    """Return the last two fields of a descriptor: they differ in order."""
    return (0, flags) if driver.form.packed else (flags, 0)


def offer(driver: Driver) -> None:
    if isinstance(driver, SplitDriver):
        driver.offer(0)


@pytest.mark.parametrize("table", [0, BASE + SIZE - 16, (1 << 64) - 16])
def test_indirect_tables_are_in_guest_memory(driver: Driver, table: int) -> None:
    ring = queue(driver)
    mark = AVAIL if driver.form.packed else 0
    driver.memory.pack(
        driver.areas.descriptors, "QIHH", table, 32, *marked(driver, INDIRECT | mark)
    )
    offer(driver)
    assert wrong(ring) == lib.PYVMM_RING_ADDRESS


def test_no_indirect_table_is_in_another(driver: Driver) -> None:
    ring = queue(driver)
    driver.add(Buffer(BUFFERS, 1), Buffer(TABLES + 0x8000, 16), indirect=True)
    driver.memory.pack(TABLES + 16, "QIHH", TABLES + 0x8000, 16, *marked(driver, INDIRECT))
    assert wrong(ring) == lib.PYVMM_RING_NESTED


def test_an_indirect_table_ends_its_chain(driver: Driver) -> None:
    ring = queue(driver)
    driver.add(Buffer(TABLES, 16), Buffer(BUFFERS, 1))
    flags = INDIRECT | NEXT | (AVAIL if driver.form.packed else 0)
    driver.memory.pack(driver.areas.descriptors, "QIHH", TABLES, 16, *marked(driver, flags))
    assert wrong(ring) == lib.PYVMM_RING_INDIRECT


def test_a_split_chain_that_loops_is_found(memory: Memory) -> None:
    driver = SplitDriver(memory)
    ring = queue(driver)
    driver.describe(driver.areas.descriptors, 0, Buffer(BUFFERS, 1), NEXT, 1)
    driver.describe(driver.areas.descriptors, 1, Buffer(BUFFERS, 1), NEXT, 0)
    driver.offer(0)
    assert wrong(ring) == lib.PYVMM_RING_LOOP


def test_an_indirect_table_that_loops_is_found(memory: Memory) -> None:
    driver = SplitDriver(memory)
    ring = queue(driver)
    driver.add(*[Buffer(BUFFERS, 1)] * 3, indirect=True)
    driver.describe(TABLES, 2, Buffer(BUFFERS, 1), NEXT, 2)
    assert wrong(ring) == lib.PYVMM_RING_LOOP


def test_a_packed_chain_longer_than_the_ring_is_found(memory: Memory) -> None:
    driver = PackedDriver(memory)
    ring = queue(driver)
    for index in range(driver.size):
        driver.describe(driver.areas.descriptors, index, Buffer(BUFFERS, 1), 0, AVAIL | NEXT)
    assert wrong(ring) == lib.PYVMM_RING_LOOP


@pytest.mark.parametrize("where", ["direct", "indirect"])
def test_a_next_beyond_the_table_is_found(memory: Memory, where: str) -> None:
    driver = SplitDriver(memory)
    ring = queue(driver)
    driver.add(Buffer(BUFFERS, 1), indirect=where == "indirect")
    table = TABLES if where == "indirect" else driver.areas.descriptors
    following = 1 if where == "indirect" else driver.size
    driver.describe(table, 0, Buffer(BUFFERS, 1), NEXT, following)
    assert wrong(ring) == lib.PYVMM_RING_DESCRIPTOR


def test_a_head_beyond_the_table_is_found(memory: Memory) -> None:
    driver = SplitDriver(memory)
    ring = queue(driver)
    driver.offer(driver.size)
    assert wrong(ring) == lib.PYVMM_RING_DESCRIPTOR


@pytest.mark.parametrize("jump", [9, 0x8000, 0xFFFF])
def test_an_index_that_jumps_is_found(memory: Memory, jump: int) -> None:
    driver = SplitDriver(memory)
    ring = queue(driver)
    memory.pack(driver.areas.driver + 2, "H", jump)
    assert wrong(ring) == lib.PYVMM_RING_INDEX


def test_more_available_than_the_ring_has_is_found(driver: Driver) -> None:
    ring = queue(driver)
    for _ in range(driver.size):
        driver.add(Buffer(BUFFERS, 1))
        pop(ring)
    if isinstance(driver, SplitDriver):
        driver.offer(0)
    else:
        driver.add(Buffer(BUFFERS, 1))
    assert wrong(ring) == lib.PYVMM_RING_INDEX


def test_a_chain_that_was_not_used_must_not_come_again(driver: Driver) -> None:
    ring = queue(driver)
    identity = driver.add(Buffer(BUFFERS, 1))
    pop(ring)
    if isinstance(driver, SplitDriver):
        driver.offer(identity)
    else:
        driver.ids = identity - 1
        driver.add(Buffer(BUFFERS, 1))
    assert wrong(ring) == lib.PYVMM_RING_REUSED


def test_a_chain_has_room_for_so_many_buffers_and_no_more(driver: Driver) -> None:
    ring = queue(driver)
    driver.add(*[Buffer(BUFFERS, 1)] * 5, indirect=True)
    few = Chain(segments=5)
    assert ring.pop(few) is few
    driver.add(*[Buffer(BUFFERS, 1)] * 6, indirect=True)
    with pytest.raises(RingError) as caught:
        ring.pop(few)
    assert caught.value.code == lib.PYVMM_RING_SEGMENTS


def test_a_chain_has_at_most_4_gib(driver: Driver) -> None:
    wide = MemoryMap(driver.memory.guest)
    wide._ranges[1].size = 1 << 33  # nothing looks into it
    ring = Queue(wide, driver.size, driver.areas, driver.form)
    driver.add(Buffer(SECOND, 0xFFFF_FFFF), Buffer(SECOND, 1))
    assert pop(ring).readable == 1 << 32
    driver.add(Buffer(SECOND, 0xFFFF_FFFF), Buffer(SECOND, 2))
    assert wrong(ring) == lib.PYVMM_RING_LENGTH


def test_what_is_not_with_the_device_cannot_be_pushed(driver: Driver) -> None:
    ring = queue(driver)
    for identity in (0, 7, 0xFFFF):
        with pytest.raises(ValueError, match="not with the device"):
            ring.push(identity, 0)


# --- where rings may be -------------------------------------------------------------------------

SPLIT, PACKED = Format(), Format(packed=True)


@pytest.mark.parametrize(
    ("size", "areas", "form", "error"),
    [
        (0, Areas(BASE, BASE, BASE), SPLIT, lib.PYVMM_RING_SIZE),
        (12, Areas(BASE, BASE, BASE), SPLIT, lib.PYVMM_RING_SIZE),
        (32769, Areas(BASE, BASE, BASE), PACKED, lib.PYVMM_RING_SIZE),
        (65536, Areas(BASE, BASE, BASE), SPLIT, lib.PYVMM_RING_SIZE),
        (8, Areas(BASE + 8, BASE, BASE), SPLIT, lib.PYVMM_RING_ALIGNMENT),
        (8, Areas(BASE, BASE + 1, BASE), SPLIT, lib.PYVMM_RING_ALIGNMENT),
        (8, Areas(BASE, BASE, BASE + 2), SPLIT, lib.PYVMM_RING_ALIGNMENT),
        (8, Areas(BASE, BASE + 2, BASE), PACKED, lib.PYVMM_RING_ALIGNMENT),
        (8, Areas(0, BASE, BASE), SPLIT, lib.PYVMM_RING_ADDRESS),
        (8, Areas(BASE + SIZE - 112, BASE, BASE), SPLIT, lib.PYVMM_RING_ADDRESS),
        (8, Areas(BASE, BASE + SIZE - 20, BASE), SPLIT, lib.PYVMM_RING_ADDRESS),
        (8, Areas(BASE, BASE, BASE + SIZE - 68), SPLIT, lib.PYVMM_RING_ADDRESS),
        (8, Areas(BASE, BASE, (1 << 64) - 4), PACKED, lib.PYVMM_RING_ADDRESS),
    ],
)
def test_a_ring_has_its_size_and_place(
    memory: Memory, size: int, areas: Areas, form: Format, error: int
) -> None:
    with pytest.raises(RingError) as caught:
        Queue(MemoryMap(memory.guest), size, areas, form)
    assert caught.value.code == error


def test_a_ring_may_end_where_memory_does(memory: Memory) -> None:
    areas = Areas(BASE + SIZE - 128, SECOND + 0xFFE8, BASE + SIZE - 128 - 72)
    assert Queue(MemoryMap(memory.guest), 8, areas, SPLIT).pop() is None
