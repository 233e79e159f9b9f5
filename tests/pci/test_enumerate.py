"""BARs are placed as an operating system does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.pci.pci_bus import IO_BASE, MEMORY, Bus, Mapped
from vmm.pci.bar import Space
from vmm.pci.enumerate import enumerate_bars
from vmm.pci.function import Identity, PciFunction

GIB = 1 << 30


def _function(name: str, *bars: Mapped) -> PciFunction:
    return PciFunction(name, Identity(0x1234, 0x1111, 0x03_8000), bars)


def test_each_bar_is_mapped_in_the_window_of_its_kind() -> None:
    ports = Mapped(0, 0x100, space=Space.IO)
    narrow = Mapped(1, 0x1000, space=Space.MEMORY32)
    wide, small = Mapped(2, 4 * GIB), Mapped(4, 0x2000)
    bus = Bus(_function("a", ports, narrow, wide), _function("b", small))
    enumerate_bars(bus.host)
    assert ports.base == IO_BASE
    assert narrow.base == MEMORY.addresses.base
    assert wide.base == 4 * GIB
    assert small.base == 8 * GIB


def test_wide_bars_share_the_32_bit_window_where_there_is_no_other() -> None:
    narrow, wide = Mapped(0, 0x1000, space=Space.MEMORY32), Mapped(2, 0x10_0000)
    bus = Bus(_function("a", narrow, wide), limit=1 << 32)
    enumerate_bars(bus.host)
    assert (wide.base, narrow.base) == (MEMORY.addresses.base, MEMORY.addresses.base + 0x10_0000)


@given(st.lists(st.tuples(st.integers(12, 34), st.booleans()), min_size=1, max_size=12))
def test_none_is_left_out(sizes: list[tuple[int, bool]]) -> None:
    """Whatever fits, as `PciHost.place` has found, is mapped."""
    bars = [
        Mapped(0, 1 << (bits if wide else min(bits, 24)), space=space)
        for bits, wide in sizes
        for space in [Space.MEMORY64 if wide else Space.MEMORY32]
    ]
    bus = Bus(*(_function(str(number), bar) for number, bar in enumerate(bars)))
    enumerate_bars(bus.host)
    assert all(bar.base is not None for bar in bars)
    assert not bus.events.seen
