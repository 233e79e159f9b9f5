"""INTx: the pin, the two bits that disable it, and the status bit."""

from __future__ import annotations

from tests.pci.pci_bus import INTX_OFF, MSIX, Bus, Mapped, Sink, function
from vmm.pci.msix import Msix

PENDING = 1 << 3


def test_each_device_drives_a_line_of_its_own() -> None:
    first, second = function(), function()
    bus = Bus(first, second)
    second.set_intx(True)
    assert (bus.lines[1].level, bus.lines[2].level) == (False, True)
    assert bus.load(0x06, 2, slot=2) & PENDING
    second.set_intx(False)
    assert not bus.lines[2].level
    assert not bus.load(0x06, 2, slot=2) & PENDING


def test_intx_disable_holds_it_back_but_not_its_status() -> None:
    made = function()
    bus = Bus(made)
    bus.command(INTX_OFF)
    made.set_intx(True)
    assert not bus.lines[1].level
    assert bus.load(0x06, 2) & PENDING
    bus.command(0)
    assert bus.lines[1].level, "it was pending"
    bus.command(INTX_OFF)
    assert not bus.lines[1].level


def test_a_function_with_msix_on_has_no_intx() -> None:
    made = function(Mapped(0, 0x1000))
    made.add_msix(Msix(1, Sink()), (0, 0), (0, 0x800))
    bus = Bus(made)
    at = bus.capabilities()[MSIX] + 2
    made.set_intx(True)
    bus.store(at, 1 << 15, 2)
    assert not bus.lines[1].level
    bus.store(at, 0, 2)
    assert bus.lines[1].level


def test_a_reset_lowers_it() -> None:
    made = function()
    bus = Bus(made)
    made.set_intx(True)
    bus.host.reset()
    assert not bus.lines[1].level


def test_status_cannot_be_written() -> None:
    bus = Bus(function())
    bus.store(0x04, 0xFFFF_0000)
    assert bus.load(0x06, 2) == 0
