"""Base address registers: what a function decodes, and where the guest wants it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from vmm._native import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.bus import BusDevice

COUNT: Final = 6
"""Registers in a type 0 header."""

LEAST_MEMORY: Final = 16
LEAST_IO: Final = 4
"""Bytes: the low bits of a register say what it is (PCI Local Bus Specification 3.0, 6.2.5.1)."""


class Space(Enum):
    """What a base address register's address is one of."""

    IO = "I/O"
    MEMORY32 = "32-bit memory"
    MEMORY64 = "64-bit memory"


class Bar:
    """Register *index*, which decodes *size* bytes (a power of two), answered by *device*.

    A 64-bit one takes the next register as well. While the guest has it decoded somewhere,
    `base` is that guest physical address; *device* is then on the bus there.

    on_map    called with the base after *device* is on the bus: to add memory slots or
              ioeventfds that go before it. What it raises (`VmmError`) is an event, and the BAR
              works by *device* alone; it must have undone what it did
    on_unmap  called before *device* leaves the bus, if `on_map` was called, whether that raised
              or not; when it returns, nothing of the BAR is left at the base. May not raise

    Both run with the host bridge's lock, in the thread of whichever vCPU wrote configuration
    space, while other vCPUs run; or, on reset, in the loop's with all of them stopped.
    """

    def __init__(  # noqa: PLR0913  (a register's kind takes so many words)
        self,
        index: int,
        size: int,
        device: BusDevice,
        *,
        space: Space = Space.MEMORY64,
        prefetchable: bool = False,
        on_map: Callable[[int], None] = lambda _base: None,
        on_unmap: Callable[[], None] = lambda: None,
    ) -> None:
        least = LEAST_IO if space is Space.IO else LEAST_MEMORY
        if size < least or size & (size - 1):
            raise ValueError(f"BAR {index}: {size:#x} bytes cannot be decoded")
        if not 0 <= index <= COUNT - (2 if space is Space.MEMORY64 else 1):
            raise ValueError(f"a function has no {space.value} BAR {index}")
        self.index = index
        self.size = size
        self.device = device
        self.space = space
        self.prefetchable = prefetchable
        self.on_map = on_map
        self.on_unmap = on_unmap
        self.base: int | None = None
        self.refused: int | None = None
        """The bus address that it cannot have; see `vmm.pci.host`."""

    @property
    def offset(self) -> int:
        """Where it is in configuration space."""
        return int(lib.PCI_BASE_ADDRESS_0) + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of configuration space: 4, or 8."""
        return 8 if self.space is Space.MEMORY64 else 4

    @property
    def flags(self) -> int:
        """The low bits, that say what it is."""
        if self.space is Space.IO:
            return int(lib.PCI_BASE_ADDRESS_SPACE_IO)
        wide = lib.PCI_BASE_ADDRESS_MEM_TYPE_64 if self.space is Space.MEMORY64 else 0
        return int(wide | (lib.PCI_BASE_ADDRESS_MEM_PREFETCH if self.prefetchable else 0))

    @property
    def mask(self) -> int:
        """The bits of the register that hold an address."""
        return ((1 << 8 * self.width) - 1) & ~(self.size - 1)

    def is_question(self, address: int) -> bool:
        """Tell whether *address* may come of asking for the size, half by half (6.2.5.1).

        Who does so ought to switch decoding off before, and not all do (U-Boot's ``pci bar``).
        """
        halves = range(0, 8 * self.width, 32)
        ones = 0xFFFF_FFFF
        return any(address >> half & ones == self.mask >> half & ones for half in halves)
