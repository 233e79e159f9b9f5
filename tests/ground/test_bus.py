"""The MMIO bus."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.bus import MmioBus


@dataclass
class Latch:
    value: int = 0
    log: list[tuple[int, int, int]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size, -1))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


def test_an_access_reaches_the_device_at_its_own_offset() -> None:
    bus, latch = MmioBus(), Latch(7)
    bus.attach(0x1000, 0x100, latch)
    bus.write(0x1004, 4, 9)
    assert bus.read(0x10FC, 4) == 7
    assert latch.log == [(4, 4, 9), (0xFC, 4, -1)]


def test_an_access_across_a_devices_end_reaches_nobody() -> None:
    bus, latch = MmioBus(), Latch(7)
    bus.attach(0x1000, 0x100, latch)
    assert bus.read(0x10FE, 4) == 0
    bus.write(0xFFE, 4, 1)
    assert latch.log == []
    assert bus.unclaimed == 2


def test_windows_may_not_overlap() -> None:
    bus = MmioBus()
    bus.attach(0x1000, 0x100, Latch())
    with pytest.raises(ValueError, match=r"0x10ff, 0x1100.*overlaps"):
        bus.attach(0x10FF, 1, Latch())
    bus.attach(0x1100, 1, Latch())


def test_where_nobody_is_reads_as_the_bus_whose_addresses_they_are() -> None:
    bus = MmioBus()
    bus.fill(0x1000, 0x1000, 0xFF)
    bus.attach(0x1800, 0x100, Latch(7))
    assert (bus.read(0x1000, 4), bus.read(0x1FFF, 1)) == (0xFFFF_FFFF, 0xFF)
    assert bus.read(0x1800, 4) == 7
    assert (bus.read(0xFFC, 4), bus.read(0x2000, 8)) == (0, 0)
    assert bus.unclaimed == 4


def test_who_leaves_the_bus_makes_room() -> None:
    bus, first, second = MmioBus(), Latch(1), Latch(2)
    bus.attach(0x1000, 0x100, first)
    bus.attach(0x2000, 0x100, second)
    bus.detach(0x1000)
    assert bus.find(0x1000, 4) is None
    assert bus.read(0x2000, 4) == 2
    bus.attach(0x1080, 0x100, first)
    with pytest.raises(ValueError, match="nothing begins at 0x1000"):
        bus.detach(0x1000)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=12), st.data())
def test_every_address_has_at_most_one_owner(
    wanted: list[tuple[int, int]], data: st.DataObject
) -> None:
    bus, owners = MmioBus(), {}
    for base, size in wanted:
        device = Latch()
        taken = any(address in owners for address in range(base, base + size))
        if taken:
            with pytest.raises(ValueError, match="overlaps"):
                bus.attach(base, size, device)
        else:
            bus.attach(base, size, device)
            owners.update(dict.fromkeys(range(base, base + size), device))
    address = data.draw(st.integers(0, 230))
    size = data.draw(st.sampled_from([1, 2, 4, 8]))
    span = [owners.get(a) for a in range(address, address + size)]
    window = bus.find(address, size)
    if span[0] is not None and all(owner is span[0] for owner in span):
        assert window is not None
        assert window.device is span[0]
    else:
        assert window is None
