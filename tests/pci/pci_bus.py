"""A PCI bus to test: a host bridge on a bus, functions, and a driver's view of them."""

from __future__ import annotations

from collections.abc import Mapping

from tests.recorded import Recorded
from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.bus import MmioBus
from vmm.pci.bar import Bar, Space
from vmm.pci.function import INTA, Identity, PciFunction
from vmm.pci.host import PciHost
from vmm.pci.msix import Message
from vmm.pci.window import PciWindow, memory

IO_BASE, MEMORY_BASE = 0x3EFF_0000, 0x1000_0000
IO = PciWindow(Space.IO, AddressRange(IO_BASE, 0x1_0000), 0)
MEMORY = memory(Space.MEMORY32, MEMORY_BASE, 0x2000_0000)
ECAM = 0x3F00_0000

COMMAND, BAR0, CAPABILITIES = 0x04, 0x10, 0x34
IO_ON, MEMORY_ON, MASTER, INTX_OFF = 1, 2, 4, 1 << 10


class Line:
    """An interrupt line that remembers its level."""

    def __init__(self) -> None:
        self.level = False

    def set_level(self, level: bool) -> None:  # noqa: FBT001
        self.level = level


class Latch:
    """A bus device with one register."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.log: list[tuple[int, int, int | None]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size, None))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


class Mapped(Bar):
    """A BAR that records where it is mapped, and checks that it is mapped once at a time."""

    def __init__(self, index: int, size: int, **kind: object) -> None:
        self.latch = Latch(0x55)
        self.where: list[int | None] = []
        super().__init__(index, size, self.latch, **kind)  # type: ignore[arg-type]
        self.on_map = self._map
        self.on_unmap = self._unmap

    def _map(self, base: int) -> None:
        assert not self.where or self.where[-1] is None
        self.where.append(base)

    def _unmap(self) -> None:
        assert self.where[-1] is not None
        self.where.append(None)


class Sink:
    """Records the messages of each vector; a test sets what is pending."""

    def __init__(self) -> None:
        self.messages: dict[int, Message | None] = {}
        self.updates: list[dict[int, Message | None]] = []
        self.waiting: set[int] = set()

    def update(self, messages: Mapping[int, Message | None]) -> None:
        self.updates.append(dict(messages))
        self.messages.update(messages)

    def pending(self, vector: int) -> bool:
        return vector in self.waiting


class Bus:
    """A host bridge with functions, as software sees it."""

    def __init__(self, *functions: PciFunction, above: int = 0, limit: int = 1 << 40) -> None:
        self.mmio, self.events = MmioBus(), Recorded()
        self.lines: dict[int, Line] = {}
        self.host = PciHost(self.mmio, [IO, MEMORY], self._line, self.events)
        self.mmio.attach(ECAM, 1 << 20, self.host)
        for function in functions:
            self.host.attach(function)
        self.end = self.host.place(above, limit)

    def _line(self, slot: int) -> Line:
        return self.lines.setdefault(slot, Line())

    def load(self, register: int, size: int = 4, slot: int = 1) -> int:
        return self.mmio.read(ECAM + (slot << 15) + register, size)

    def store(self, register: int, value: int, size: int = 4, slot: int = 1) -> None:
        self.mmio.write(ECAM + (slot << 15) + register, size, value)

    def command(self, value: int, slot: int = 1) -> None:
        self.store(COMMAND, value, 2, slot)

    def place(self, address: int, index: int = 0, slot: int = 1, width: int = 8) -> None:
        """Write a BAR as Linux does: low half, high half."""
        self.store(BAR0 + 4 * index, address & 0xFFFF_FFFF, 4, slot)
        if width == 8:
            self.store(BAR0 + 4 * index + 4, address >> 32, 4, slot)

    def size_of(self, index: int, slot: int = 1, width: int = 8) -> int:
        """Find out how large a BAR is, as Linux does (pci_read_bases)."""
        found = 0
        for part in range(width // 4):
            at = BAR0 + 4 * index + 4 * part
            before = self.load(at, slot=slot)
            self.store(at, 0xFFFF_FFFF, slot=slot)
            found |= self.load(at, slot=slot) << 32 * part
            self.store(at, before, slot=slot)
        low = 0x3 if found & 1 else 0xF
        return (~(found & ~low) + 1) & ((1 << 8 * width) - 1)

    def capabilities(self, slot: int = 1) -> dict[int, int]:
        """Return kind to offset; for several of a kind, the last."""
        return dict(self.capability_list(slot))

    def capability_list(self, slot: int = 1) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        at = self.load(CAPABILITIES, 1, slot)
        while at:
            assert at % 4 == 0
            found.append((self.load(at, 1, slot), at))
            at = self.load(at + 1, 1, slot)
        return found

    def windows(self) -> list[tuple[int, int]]:
        """Return [base, end) of all that is on the bus."""
        return [(window.addresses.base, window.addresses.end) for window in self.mmio._map.windows]


IDENTITY = Identity(0x1234, 0x5678, 0x02_00_00, 3, 0x1AF4, 0x1100)


def function(*bars: Bar, name: str = "test", pin: int = INTA) -> PciFunction:
    return PciFunction(name, IDENTITY, bars, pin=pin)


MSIX, EXPRESS, POWER = lib.PCI_CAP_ID_MSIX, lib.PCI_CAP_ID_EXP, lib.PCI_CAP_ID_PM
