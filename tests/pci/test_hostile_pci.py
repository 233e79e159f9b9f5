"""Hostile guests: whatever they write to configuration space, BARs stay in the windows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from threading import Event, Thread

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pci.pci_bus import (
    BAR0,
    COMMAND,
    ECAM,
    IO,
    MEMORY,
    MEMORY_ON,
    Bus,
    Mapped,
    Sink,
    function,
)
from vmm.events import COMPLAINTS
from vmm.pci.bar import Bar, Space
from vmm.pci.function import PciFunction
from vmm.pci.msix import Msix

RAM = (0x4000_0000, 0x8000_0000)
GIC = (0x0800_0000, 0x0900_0000)
HIGH = 128 << 30
LIMIT = 1 << 40


class Slots:
    """Memory slots that come and go. They may not overlap, as in KVM."""

    def __init__(self) -> None:
        self.taken = [RAM]

    def add(self, base: int, size: int) -> None:
        for low, high in self.taken:
            assert base + size <= low or high <= base, "a slot over another"
        assert base + size <= LIMIT
        self.taken.append((base, base + size))

    def remove(self, base: int, size: int) -> None:
        self.taken.remove((base, base + size))


class SlotBar(Mapped):
    """A BAR that is a memory slot."""

    def __init__(self, index: int, size: int, slots: Slots, space: Space) -> None:
        super().__init__(index, size, space=space)
        self.slots = slots

    def _map(self, base: int) -> None:
        super()._map(base)
        if self.space is not Space.IO:
            self.slots.add(base, self.size)

    def _unmap(self) -> None:
        if self.space is not Space.IO:
            base = self.where[-1]
            assert base is not None
            self.slots.remove(base, self.size)
        super()._unmap()


def functions(slots: Slots) -> list[PciFunction]:
    """Return a few functions, with BARs of all kinds and sizes, and all capabilities."""
    wide, narrow, ports = Space.MEMORY64, Space.MEMORY32, Space.IO
    kinds = (
        ((0, 0x1000, wide), (2, 128 << 30, wide), (4, 0x20, ports)),
        ((0, 0x1_0000, narrow), (1, 16, narrow), (2, 0x100, ports), (4, 1 << 20, wide)),
        ((0, 0x1000, wide), (2, 0x1000, wide), (4, 0x1000, wide)),
    )
    made = []
    for number, bars in enumerate(kinds):
        each = function(
            *(SlotBar(index, size, slots, space) for index, size, space in bars),
            name=f"hostile{number}",
        )
        each.add_msix(Msix(8, Sink()), (0, 0), (0, 0x800))
        each.add_power_management()
        each.add_express()
        made.append(each)
    return made


def check(bus: Bus, slots: Slots) -> None:
    """Check that BARs are only where they may be."""
    windows = sorted(bus.windows())
    assert all(end <= base for (_, end), (base, _) in pairwise(windows))
    there = {(ECAM, ECAM + (1 << 20))}
    occupied = []
    for slot, each in bus.host.functions.items():
        for bar in each.bars:
            wanted = each.decoded(bar)
            if bar.base is None:
                assert wanted is None or refusable(bus, bar, wanted), f"{slot}: {bar.index}"
                continue
            assert wanted is not None
            there.add((bar.base, bar.base + bar.size))
            occupied.append((bar.base, bar.base + bar.size, bar.space))
            assert any(window.addresses.contains(bar.base, bar.size) for window in bus.host.windows)
            for low, high in (RAM, GIC):
                assert bar.base + bar.size <= low or high <= bar.base
    assert set(windows) == there
    memory = sorted((base, end) for base, end, space in occupied if space is not Space.IO)
    assert sorted(slots.taken) == sorted([RAM, *memory])
    assert len(bus.events.seen) <= COMPLAINTS * len(bus.host.functions)


def refusable(bus: Bus, bar: Bar, wanted: int) -> bool:
    """Tell whether there is a reason not to map *bar* where the guest wants it."""
    for window in bus.host.windows:
        base = window.translate(wanted, bar.size)
        if (window.space is Space.IO) is (bar.space is Space.IO) and base is not None:
            return any(base < end and low < base + bar.size for low, end in bus.windows())
    return True


addresses = st.sampled_from(
    [
        *(
            0,
            0x1000,
            RAM[0],
            RAM[1] - 0x1000,
            GIC[0],
            0x0900_0000,
            ECAM,
            IO.addresses.base,
            0xFFFF_F000,
        ),
        *(
            MEMORY.addresses.base,
            MEMORY.addresses.base + 0x1000,
            MEMORY.addresses.base + 0x1_0000,
            MEMORY.addresses.end - 0x1000,
        ),
        *(HIGH, HIGH + 0x1000, 2 * HIGH, 2 * HIGH - 0x1000, 3 * HIGH, LIMIT - 0x1000, LIMIT),
        *((1 << 64) - 0x1000, (1 << 64) - 1, 0x20, 0x100, 0xFFE0),
    ]
) | st.integers(0, (1 << 64) - 1)
slots_ = st.integers(1, 3)
commands = st.sampled_from([0, 1, 2, 3, 7, 3, 3, 0x407, 0xFFFF])
steps = st.one_of(
    st.tuples(st.just("command"), slots_, commands),
    st.tuples(st.just("bar"), slots_, st.integers(0, 5), addresses),
    st.tuples(
        st.just("store"),
        slots_,
        st.integers(0, 0xFFF),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(0, (1 << 64) - 1),
    ),
    st.tuples(st.just("access"), addresses, st.integers(0, 0xFFFF)),
    st.tuples(st.just("reset")),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(steps, max_size=60))
def test_whatever_is_written_bars_are_only_where_they_may_be(
    program: list[tuple[int | str, ...]],
) -> None:
    slots = Slots()
    bus = Bus(*functions(slots), above=RAM[1], limit=LIMIT)
    for step in program:
        match step:
            case ("command", int(slot), int(value)):
                bus.command(value, slot)
            case ("bar", int(slot), int(index), int(address)):
                bus.place(address & ~0xF, index, slot, 8 if index < 5 else 4)
            case ("store", int(slot), int(offset), int(size), int(value)):
                bus.store(offset, value & (1 << 8 * size) - 1, size, slot)
                assert 0 <= bus.load(offset, size, slot) < 1 << 8 * size
            case ("access", int(address), int(value)):
                bus.mmio.write(address, 4, value)
                bus.mmio.read(address, 4)
            case _:
                bus.host.reset()
        check(bus, slots)
    bus.host.close()
    assert slots.taken == [RAM]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, (1 << 64) - 1), size=st.sampled_from([1, 2, 4]))
def test_all_of_configuration_space_can_be_overwritten(seed: int, size: int) -> None:
    garbage = Random(seed).randbytes(4096)  # noqa: S311  (nobody's secret)
    slots = Slots()
    bus = Bus(*functions(slots), above=RAM[1], limit=LIMIT)
    for offset in range(0, 4096, size):
        value = int.from_bytes(garbage[offset : offset + size], "little")
        for slot in (1, 2, 3):
            bus.store(offset, value, size, slot)
    check(bus, slots)
    assert bus.load(0) == 0x5678_1234
    assert len(bus.capability_list()) == 3


def at_once(seconds: float, *loops: Callable[[], object]) -> None:
    """Run all of *loops* concurrently, over and over; raise what one of them raised."""
    stop = Event()
    failures: list[BaseException] = []

    def repeat(what: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                what()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [Thread(target=repeat, args=(each,)) for each in loops]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_memory_toggled_while_others_use_the_bar_hurts_nobody() -> None:
    """Two vCPUs read and write a BAR that a third switches on and off and a fourth moves."""
    slots = Slots()
    bus = Bus(*functions(slots), above=RAM[1], limit=LIMIT)
    base = bus.host.windows[-1].addresses.base
    places = [base, base + 0x1000, base + 0x8000, RAM[0], 0]
    bus.place(base)
    seen: set[int] = set()

    def use() -> None:
        for place in places[:3]:
            seen.add(bus.mmio.read(place + 4, 4))
            bus.mmio.write(place + 8, 4, 1)

    def toggle() -> None:
        bus.store(COMMAND, MEMORY_ON, 2)
        bus.store(COMMAND, 0, 2)

    def move() -> None:
        for place in places:
            bus.store(BAR0, place & 0xFFFF_FFFF)
            bus.store(BAR0 + 4, place >> 32)

    at_once(1.0, use, use, toggle, move)
    assert seen == {0xFFFF_FFFF, 0x55}
    check(bus, slots)
