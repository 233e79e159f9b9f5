"""Base address registers (BARs): which addresses a function decodes."""

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
"""Bytes. A register's low bits encode its kind (PCI Local Bus Specification 3.0, 6.2.5.1)."""


class Space(Enum):
    """The address space of a base address register."""

    IO = "I/O"
    MEMORY32 = "32-bit memory"
    MEMORY64 = "64-bit memory"


class Bar:
    """Register *index*, which decodes *size* bytes (a power of two); *device* answers them.

    A 64-bit BAR takes the next register as well. While it is mapped, *device* is on the bus and
    `base` is its guest physical address; otherwise `base` is None.

    on_map    called with the base after *device* is attached to the bus. It adds memory slots or
              ioeventfds, which take precedence over the bus. If it raises `VmmError`, it must
              have undone what it did; the error becomes an event, and *device* answers
    on_unmap  called before *device* is detached from the bus, if `on_map` was called, even if
              that raised. When it returns, no slot or ioeventfd is left. May not raise

    Both run with the host bridge's lock: in the thread of the vCPU that wrote configuration
    space, while other vCPUs run; or, on reset, in the event loop's with all vCPUs stopped.

    Raises ValueError for a size or an index that a function cannot have.
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
        """The bus address at which it could not be mapped; see `vmm.pci.host`."""

    @property
    def offset(self) -> int:
        """Offset in configuration space."""
        return int(lib.PCI_BASE_ADDRESS_0) + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of configuration space: 4, or 8."""
        return 8 if self.space is Space.MEMORY64 else 4

    @property
    def flags(self) -> int:
        """The low bits, which encode its kind."""
        if self.space is Space.IO:
            return int(lib.PCI_BASE_ADDRESS_SPACE_IO)
        wide = lib.PCI_BASE_ADDRESS_MEM_TYPE_64 if self.space is Space.MEMORY64 else 0
        return int(wide | (lib.PCI_BASE_ADDRESS_MEM_PREFETCH if self.prefetchable else 0))

    @property
    def mask(self) -> int:
        """The bits of the register that hold an address."""
        return ((1 << 8 * self.width) - 1) & ~(self.size - 1)

    def is_question(self, address: int) -> bool:
        """Tell whether *address* may be a step of sizing: ones written to a half (6.2.5.1).

        Software should switch decoding off first; some does not (U-Boot's ``pci bar``).
        """
        halves = range(0, 8 * self.width, 32)
        ones = 0xFFFF_FFFF
        return any(address >> half & ones == self.mask >> half & ones for half in halves)
