"""Configuration space as software sees it: the header, BARs' sizes, capabilities, masks."""

from __future__ import annotations

import pytest

from tests.pci.pci_bus import (
    BAR0,
    COMMAND,
    EXPRESS,
    INTX_OFF,
    IO_ON,
    MASTER,
    MEMORY_ON,
    MSIX,
    POWER,
    Bus,
    Mapped,
    Sink,
    function,
)
from vmm.pci.bar import Bar, Space
from vmm.pci.capability import Capability
from vmm.pci.config import ConfigSpace
from vmm.pci.msix import Msix

STATUS, REVISION, HEADER_TYPE, LINE, PIN = 0x06, 0x08, 0x0E, 0x3C, 0x3D


def test_the_header_says_who_it_is() -> None:
    bus = Bus(function())
    assert bus.load(0) == 0x5678_1234
    assert bus.load(REVISION) == 0x0200_0003
    assert bus.load(HEADER_TYPE, 1) == 0
    assert bus.load(0x2C) == 0x1100_1AF4
    assert bus.load(PIN, 1) == 1
    bus.store(0, 0)
    bus.store(0x2C, 0)
    assert bus.load(0) == 0x5678_1234
    assert bus.load(0x2C) == 0x1100_1AF4


def test_nobody_is_in_an_empty_slot() -> None:
    bus = Bus(function())
    for slot in (0, 2, 31):
        assert bus.load(0, slot=slot) == 0xFFFF_FFFF
        bus.store(COMMAND, 0xFFFF, 2, slot)
        assert bus.load(COMMAND, 2, slot) == 0xFFFF
    assert bus.mmio.read(0x3F00_9000, 4) == 0xFFFF_FFFF, "function 1 of the device in slot 1"


@pytest.mark.parametrize(("offset", "size"), [(0, 8), (1, 2), (3, 4), (0xFFE, 4)])
def test_what_is_no_access_reads_ones(offset: int, size: int) -> None:
    bus = Bus(function())
    assert bus.load(offset, size) == (1 << 8 * size) - 1
    bus.store(offset, 0, size)
    assert bus.load(0) == 0x5678_1234


def test_the_command_register_has_the_bits_that_mean_something() -> None:
    bus = Bus(function(Mapped(0, 0x1000)))
    bus.command(0xFFFF)
    assert bus.load(COMMAND, 2) == MEMORY_ON | MASTER | 1 << 6 | 1 << 8 | INTX_OFF
    bus = Bus(function(Mapped(0, 0x100, space=Space.IO)))
    bus.command(0xFFFF)
    assert bus.load(COMMAND, 2) & 3 == IO_ON
    bus = Bus(function())
    bus.command(0xFFFF)
    assert not bus.load(COMMAND, 2) & 3


def test_the_interrupt_line_is_the_guests_to_write_if_there_is_a_pin() -> None:
    bus = Bus(function(), function(pin=0))
    for slot, expected in ((1, 0xA5), (2, 0)):
        bus.store(LINE, 0xA5, 1, slot)
        assert bus.load(LINE, 1, slot) == expected


@pytest.mark.parametrize(
    ("size", "space", "width"),
    [
        (0x1000, Space.MEMORY64, 8),
        (128 << 30, Space.MEMORY64, 8),
        (16, Space.MEMORY32, 4),
        (0x10_0000, Space.MEMORY32, 4),
        (4, Space.IO, 4),
        (0x100, Space.IO, 4),
    ],
)
def test_the_size_of_a_bar_is_found_as_linux_does(size: int, space: Space, width: int) -> None:
    bus = Bus(function(Mapped(0, size, space=space)))
    assert bus.size_of(0, width=width) == size
    assert bus.load(BAR0) == {Space.MEMORY64: 4, Space.MEMORY32: 0, Space.IO: 1}[space]


def test_a_prefetchable_bar_says_so() -> None:
    bus = Bus(function(Mapped(2, 0x1000, prefetchable=True)))
    assert bus.load(BAR0 + 8) == 0xC
    assert bus.load(BAR0) == 0, "and there is no other"
    bus.store(BAR0, 0xFFFF_FFFF)
    assert bus.load(BAR0) == 0


@pytest.mark.parametrize(
    ("index", "size", "space"),
    [
        (0, 0x1800, Space.MEMORY64),
        (0, 8, Space.MEMORY32),
        (0, 2, Space.IO),
        (5, 0x1000, Space.MEMORY64),
        (6, 0x1000, Space.MEMORY32),
    ],
)
def test_a_bar_that_cannot_be_is_refused(index: int, size: int, space: Space) -> None:
    with pytest.raises(ValueError, match=r"decoded|has no"):
        Mapped(index, size, space=space)


def test_bars_do_not_share_registers() -> None:
    with pytest.raises(ValueError, match="there twice"):
        function(Mapped(0, 0x1000), Mapped(1, 0x1000, space=Space.MEMORY32))


def test_a_64_bit_bar_does_not_fit_last() -> None:
    function(Mapped(4, 0x1000), Mapped(3, 0x1000, space=Space.MEMORY32))


def test_capabilities_are_a_list_that_ends() -> None:
    made = function(Mapped(0, 0x1000))
    bus = Bus(made)
    assert bus.load(STATUS, 2) == 0
    assert bus.capability_list() == []
    made.add_msix(Msix(4, Sink()), (0, 0), (0, 0x800))
    made.add_power_management()
    made.add_express()
    assert bus.load(STATUS, 2) == 1 << 4
    kinds = [kind for kind, _ in bus.capability_list()]
    assert kinds == [MSIX, POWER, EXPRESS]
    at = bus.capabilities()[MSIX]
    assert bus.load(at + 2, 2) == 3
    assert (bus.load(at + 4), bus.load(at + 8)) == (0, 0x800)


def test_a_capability_can_be_where_a_real_device_has_it() -> None:
    made = function()
    made.add_power_management(at=0x80)
    made.add_express()
    assert Bus(made).capability_list() == [(POWER, 0x80), (EXPRESS, 0x88)]


@pytest.mark.parametrize("at", [0x3C, 0x42, 0xFC])
def test_a_capability_lies_in_what_is_for_capabilities(at: int) -> None:
    with pytest.raises(ValueError, match="cannot be at"):
        function().add_power_management(at=at)


def test_capabilities_that_do_not_fit_are_refused() -> None:
    space = ConfigSpace()
    for _ in range(3):
        space.add_capability(Capability(9, bytes(62)))
    with pytest.raises(ValueError, match="cannot be at"):
        space.add_capability(Capability(9, bytes(1)))


def test_only_what_is_writable_is_written_and_ones_clear() -> None:
    space = ConfigSpace()
    space.define(0x40, b"\xff\xff\x00\x0f", writable=b"\x0f", clears=b"\0\xf0")
    space.write(0x40, 4, 0)
    assert space.read(0x40, 4) == 0x0F00_FFF0
    space.write(0x40, 4, 0xFFFF_FFFF)
    assert space.read(0x40, 4) == 0x0F00_0FFF
    space.set(0x42, 1, 0xEE)
    assert space.read(0x40, 4) == 0x0FEE_0FFF
    space.reset()
    assert space.read(0x40, 4) == 0x0F00_FFFF
    assert space.writable(0x40, 2) == 0x000F


def test_what_is_beyond_configuration_space_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        ConfigSpace().define(0xFFE, bytes(4))


def test_an_endpoint_in_the_root_complex_has_no_link() -> None:
    made = function()
    made.add_express()
    bus = Bus(made)
    at = bus.capabilities()[EXPRESS]
    assert bus.load(at + 2, 2) == 0x92, "version 2, root complex integrated endpoint"
    assert bus.load(at + 4) & 1 << 28, "function-level reset"
    assert bus.load(at + 0xC) == 0


def test_a_function_level_reset_forgets_everything() -> None:
    made = function(bar := Mapped(0, 0x1000))
    made.add_express()
    made.add_msix(Msix(2, sink := Sink()), (0, 0), (0, 0x800))
    bus = Bus(made)
    at = bus.capabilities()[EXPRESS]
    bus.place(bus.host.windows[2].addresses.base)
    bus.command(MEMORY_ON | MASTER)
    bus.store(bus.capabilities()[MSIX] + 2, 1 << 15, 2)
    made.set_intx(True)
    bus.store(at + 8, bus.load(at + 8, 2) | 1 << 15, 2)
    assert bar.base is None
    assert bus.load(COMMAND, 2) == 0
    assert bus.load(BAR0) == 4
    assert bus.load(at + 8, 2) == 0, "the bit reads as zero"
    assert not made.msix.enabled if made.msix else False
    assert not bus.lines[1].level
    assert all(message is None for message in sink.messages.values())


def test_bars_know_where_their_registers_are() -> None:
    bar = Bar(2, 1 << 20, Mapped(0, 16).latch)
    assert (bar.offset, bar.width, bar.flags) == (0x18, 8, 4)
    assert bar.mask == 0xFFFF_FFFF_FFF0_0000
