"""Windows: the guest physical addresses that a host bridge forwards to its bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.address_range import AddressRange
from vmm.pci.bar import Space

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.pci.bar import Bar

LEAST_HIGH: Final = 512 << 20
"""Bytes. The 64-bit window is no smaller: addresses cost nothing."""

FOUR_GIB: Final = 1 << 32


class PciWindow(NamedTuple):
    """Guest physical *addresses* that are bus addresses of *space* from *bus_base* on."""

    space: Space
    addresses: AddressRange
    bus_base: int

    def translate(self, address: int, size: int) -> int | None:
        """Return the guest physical address of *size* bytes at bus *address*, if they are here."""
        offset = address - self.bus_base
        return self.addresses.base + offset if 0 <= offset <= self.addresses.size - size else None


def memory(space: Space, base: int, size: int) -> PciWindow:
    """Return a window of memory. Bus addresses are guest physical addresses, as DMA's are."""
    return PciWindow(space, AddressRange(base, size), base)


def fits(bars: Iterable[Bar], size: int) -> bool:
    """Tell whether *bars* fit in a window of *size* bytes that is aligned to the largest.

    Sizes are powers of two: placed largest first, they leave no gaps.
    """
    return sum(bar.size for bar in bars) <= size


def high(bars: Iterable[Bar], above: int, limit: int) -> PciWindow | None:
    """Return a 64-bit window for *bars* above guest physical *above*, and below *limit*.

    It is aligned to the largest of them, and twice as large as all of them if there is room, so
    that each can be moved. None if there is no room.
    """
    sizes = [bar.size for bar in bars]
    total, largest = sum(sizes), max(sizes, default=1)
    above = max(above, FOUR_GIB)  # edk2 requires it (PciHostBridgeDxe)
    for alignment, size in (
        (max(largest, LEAST_HIGH), 1 << max(2 * total, LEAST_HIGH).bit_length() - 1),
        (largest, total),
    ):
        base = -(-above // alignment) * alignment
        if base + size <= limit:
            return memory(Space.MEMORY64, base, size)
    return None
