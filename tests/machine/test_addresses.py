"""Names of the addresses where a machine's accesses exit."""

from __future__ import annotations

from vmm.arm64 import layout
from vmm.bus import MmioBus
from vmm.events import Events
from vmm.irq import SwitchableLine
from vmm.machine.addresses import named
from vmm.machine.pci_root import PciRoot
from vmm.observe.names import NOTHING, find
from vmm.pci.bar import Bar, Space
from vmm.pci.function import Identity, PciFunction

ABOVE, LIMIT = 0x1_0000_0000, 1 << 40


class Register:
    """A device without anything in it."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Take it."""


def test_registers_windows_functions_and_bars_have_names() -> None:
    with PciRoot(MmioBus(), lambda _spi: SwitchableLine(), Events()) as root:
        bar = Bar(0, 0x4000, Register(), space=Space.MEMORY64)
        slot = root.attach(PciFunction("disk0", Identity(1, 2, 0xFF0000), [bar]))
        root.place(ABOVE, LIMIT)
        base = root.host.windows[-1].addresses.base
        configuration = layout.PCI_ECAM + (slot << 15)
        before = named(None, root)
        assert find(before, layout.UART) == "PL011 UART"
        assert find(before, configuration) == "disk0 configuration"
        assert find(before, base) == "PCI 64-bit memory", "the guest has not placed the BAR"
        assert find(before, layout.RAM) == NOTHING
        bar.base = base + 0x4000
        after = named(None, root)
        assert find(after, base + 0x4000) == "disk0 BAR 0"
        assert find(after, base + 0x8000) == "PCI 64-bit memory"
        bar.base = None


def test_a_machine_without_pci_has_names_too() -> None:
    assert find(named(None, None), layout.RTC) == "PL031 RTC"
