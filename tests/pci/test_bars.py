"""BARs are mapped where the guest decodes them inside a window, and nowhere else."""

from __future__ import annotations

import time

import pytest

from tests.pci.pci_bus import (
    ECAM,
    IO_BASE,
    IO_ON,
    MEMORY,
    MEMORY_BASE,
    MEMORY_ON,
    POWER,
    Bus,
    Mapped,
    function,
)
from vmm.errors import HostError, UserError
from vmm.events import COMPLAINTS
from vmm.pci.bar import Space

HIGH = 1 << 32
GIB = 1 << 30


def test_a_bar_is_mapped_while_memory_is_enabled() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    bus.place(HIGH + 0x1000)
    assert bar.base is None
    bus.command(MEMORY_ON)
    assert bar.base == HIGH + 0x1000
    assert bus.mmio.read(HIGH + 0x1004, 4) == 0x55
    assert bar.latch.log == [(4, 4, None)]
    bus.command(0)
    assert bar.base is None
    assert bus.mmio.read(HIGH + 0x1004, 4) == 0xFFFF_FFFF, "nobody claims it"
    assert bar.where == [HIGH + 0x1000, None]


def test_a_bar_that_is_moved_while_decoded_leaves_nothing_behind() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    bus.place(HIGH)
    bus.command(MEMORY_ON)
    bus.place(HIGH + 0x10_0000)
    assert bar.where == [HIGH, None, HIGH + 0x10_0000]
    assert (HIGH, HIGH + 0x1000) not in bus.windows()


def test_a_64_bit_bar_may_be_in_the_32_bit_window() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    bus.place(MEMORY_BASE + 0x4000)
    bus.command(MEMORY_ON)
    assert bar.base == MEMORY_BASE + 0x4000


def test_io_ports_are_where_their_window_is() -> None:
    bus = Bus(function(bar := Mapped(0, 0x20, space=Space.IO)))
    bus.place(0x1020, width=4)
    bus.command(MEMORY_ON)
    assert bar.base is None
    bus.command(IO_ON)
    assert bar.base == IO_BASE + 0x1020
    bus.place(0x1_0000, width=4)
    assert bar.base is None
    assert bus.events.names() == ["pci-bar-refused"]


def test_memory_is_not_in_the_window_for_ports_nor_ports_in_memory() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000, space=Space.MEMORY32)))
    bus.place(IO_BASE, width=4)
    bus.command(MEMORY_ON)
    assert bar.base is None
    bus = Bus(function(bar := Mapped(0, 0x20, space=Space.IO)))
    bus.place(MEMORY_BASE, width=4)
    bus.command(IO_ON)
    assert bar.base is None


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("nowhere", 0),
        ("RAM", 0x4000_0000),
        ("GIC", 0x0800_0000),
        ("UART", 0x0900_0000),
        ("ECAM", ECAM),
        ("past the end of the window", MEMORY.addresses.end - 0x1000 + 0x2000),
        ("before its beginning", MEMORY_BASE - 0x1000),
        ("beyond the IPA space", 1 << 40),
        ("far beyond", 1 << 63),
    ],
)
def test_a_bar_outside_the_windows_is_refused(name: str, address: int) -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    before = bus.windows()
    bus.command(MEMORY_ON)
    bus.store(0x14, address >> 32)
    bus.store(0x10, address & 0xFFFF_FFFF)
    assert bar.base is None, name
    assert bus.windows() == before
    assert bus.events.seen[-1] == (
        "pci-bar-refused",
        {
            "device": "test",
            "bar": 0,
            "address": address,
            "size": 0x1000,
            "because": "it is in no window of the host bridge",
        },
    )


def test_finding_out_a_size_with_memory_enabled_is_no_fault() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000, space=Space.MEMORY32)))
    bus.place(MEMORY_BASE, width=4)
    bus.command(MEMORY_ON)
    assert bus.size_of(0, width=4) == 0x1000
    assert bar.where == [MEMORY_BASE, None, MEMORY_BASE]
    assert bus.events.names() == []


def test_finding_out_a_size_half_by_half_is_none_either() -> None:
    """U-Boot sizes BARs so. An address that looks like sizing but is in a window is an address."""
    bus = Bus(function(bar := Mapped(0, 0x8000)), above=0x1_E000_0000)
    base = bus.host.windows[-1].addresses.base
    bus.place(base)
    bus.command(MEMORY_ON)
    assert bus.size_of(0) == 0x8000
    assert bar.base == base
    bus.place(0x1_FFFF_8000)
    assert bar.base == 0x1_FFFF_8000
    assert bus.events.names() == []


def test_two_bars_do_not_overlap_and_the_second_comes_when_there_is_room() -> None:
    first, second = Mapped(0, 0x4000), Mapped(0, 0x1000)
    bus = Bus(function(first), function(second, name="other"))
    bus.place(HIGH)
    bus.command(MEMORY_ON)
    bus.place(HIGH + 0x3000, slot=2)
    bus.command(MEMORY_ON, slot=2)
    assert (first.base, second.base) == (HIGH, None)
    ((name, fields),) = bus.events.seen
    assert (name, fields["device"]) == ("pci-bar-refused", "other")
    assert fields["because"] == "another BAR is there"
    bus.command(MEMORY_ON, slot=2)
    bus.place(HIGH + 0x8000)
    assert (first.base, second.base) == (HIGH + 0x8000, HIGH + 0x3000)
    assert len(bus.events.seen) == 1


def test_bars_can_be_exchanged_while_both_are_decoded() -> None:
    """Firmware, or a kernel that moves everything, does so."""
    first, second = Mapped(0, 0x1000), Mapped(0, 0x1000)
    bus = Bus(function(first), function(second))
    for slot, address in ((1, HIGH), (2, HIGH + 0x1000)):
        bus.place(address, slot=slot)
        bus.command(MEMORY_ON, slot=slot)
    bus.place(HIGH + 0x1000, slot=1)
    bus.place(HIGH, slot=2)
    assert (first.base, second.base) == (HIGH + 0x1000, HIGH)


def test_a_sleeping_function_decodes_nothing() -> None:
    made = function(bar := Mapped(0, 0x1000))
    made.add_power_management()
    bus = Bus(made)
    control = bus.capabilities()[POWER] + 4
    bus.place(HIGH)
    bus.command(MEMORY_ON)
    bus.store(control, 3, 2)
    assert bar.base is None
    bus.store(control, 0, 2)
    assert bar.base == HIGH
    assert bus.load(0x04, 2) == MEMORY_ON, "nothing is lost (No_Soft_Reset)"


def test_a_reset_puts_bars_nowhere() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    bus.place(HIGH)
    bus.command(MEMORY_ON)
    bus.host.reset()
    assert bar.base is None
    assert bus.load(0x10) == 4
    assert bus.load(0x04, 2) == 0


def test_closing_unmaps_and_can_be_done_twice() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    bus.place(HIGH)
    bus.command(MEMORY_ON)
    bus.host.close()
    bus.host.close()
    assert bar.where == [HIGH, None]
    assert bus.load(0) == 0xFFFF_FFFF


def test_a_bar_whose_mapping_fails_is_trapped_and_says_so() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)))
    unmapped = []

    def fail(_base: int) -> None:
        raise HostError("no slot left")

    bar.on_map, bar.on_unmap = fail, lambda: unmapped.append(True)
    bus.place(HIGH)
    bus.command(MEMORY_ON)
    assert bus.mmio.read(HIGH, 4) == 0x55
    ((name, fields),) = bus.events.seen
    assert (name, fields["because"]) == ("pci-bar-trapped", "no slot left")
    bus.command(0)
    assert unmapped == [True]
    assert bus.mmio.find(HIGH, 4) is None


def test_events_of_one_function_are_bounded() -> None:
    bus = Bus(function(Mapped(0, 0x1000)), function(Mapped(0, 0x1000), name="other"))
    bus.command(MEMORY_ON)
    for page in range(3 * COMPLAINTS):
        bus.place(page << 12, width=4)
    assert len(bus.events.seen) == COMPLAINTS
    bus.command(MEMORY_ON, slot=2)
    assert len(bus.events.seen) == COMPLAINTS + 1


# Windows


@pytest.mark.parametrize("size", [0x1000, 128 * GIB, 4096 * GIB])
def test_the_64_bit_window_is_above_memory_and_holds_what_there_is(size: int) -> None:
    bus = Bus(function(bar := Mapped(0, size)), above=3 * GIB, limit=1 << 48)
    window = bus.host.windows[-1]
    assert window.space is Space.MEMORY64
    assert window.addresses.base >= max(4 * GIB, size)
    assert window.addresses.base % size == 0
    assert window.addresses.size >= 2 * size
    assert window.bus_base == window.addresses.base
    assert bus.end == window.addresses.end
    bus.place(window.addresses.base + size)
    bus.command(MEMORY_ON)
    assert bar.base == window.addresses.base + size


def test_placing_takes_no_longer_for_terabytes() -> None:
    def seconds(size: int) -> float:
        began = time.perf_counter()
        for _ in range(20):
            bus = Bus(function(bar := Mapped(0, size)), limit=1 << 52)
            bus.place(bus.host.windows[-1].addresses.base)
            bus.command(MEMORY_ON)
            assert bar.base is not None
        return time.perf_counter() - began

    seconds(0x1000)
    small, large = (min(seconds(size) for _ in range(3)) for size in (0x1000, 1 << 47))
    assert large < 3 * small


def test_a_bar_of_128_gib_has_a_place_below_256_gib() -> None:
    """40 bits of IPA are KVM's default; a window twice as large would not fit in 38."""
    bus = Bus(function(Mapped(0, 128 * GIB)), above=2 * GIB, limit=1 << 38)
    window = bus.host.windows[-1]
    assert (window.addresses.base, window.addresses.size) == (128 * GIB, 128 * GIB)


def test_small_bars_go_below_when_there_is_no_room_above() -> None:
    bus = Bus(function(bar := Mapped(0, 0x1000)), above=2 * GIB, limit=1 << 32)
    assert len(bus.host.windows) == 2
    assert bus.end == 2 * GIB
    bus.place(MEMORY_BASE)
    bus.command(MEMORY_ON)
    assert bar.base == MEMORY_BASE


def test_a_bar_without_a_place_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"^test: its BAR 0 of 0x2000000000 bytes.*--memory$"):
        Bus(function(Mapped(0, 128 * GIB)), limit=1 << 36)
    with pytest.raises(UserError, match="has no place"):
        Bus(function(Mapped(0, 1 * GIB, space=Space.MEMORY32)))


def test_without_64_bit_bars_there_is_no_such_window() -> None:
    bus = Bus(function(Mapped(0, 0x1000, space=Space.MEMORY32)), above=5 * GIB)
    assert [window.space for window in bus.host.windows] == [Space.IO, Space.MEMORY32]
    assert bus.end == 5 * GIB


def test_there_are_31_slots() -> None:
    bus = Bus(*(function() for _ in range(31)))
    assert sorted(bus.host.functions) == list(range(1, 32))
    with pytest.raises(UserError, match="no more than 31 PCI devices"):
        bus.host.attach(function())
