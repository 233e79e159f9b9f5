"""A half-open interval of addresses: guest physical, host virtual, I/O virtual, or offsets.

Types that carry more embed one: `bus.Window`, `pci.window.PciWindow`, `coherence.dump.Span` and
`coherence.vma.Vma`. Three have base and size as fields of their own: `kvm.slots.MemorySlot` (those
of ``struct kvm_userspace_memory_region``), `memory.Region` (its size is its view's) and
`coherence.ledger.Entry` (a line of the ledger, which is printed and saved as it is).
"""

from __future__ import annotations

from typing import NamedTuple


class AddressRange(NamedTuple):
    """Addresses [base, base + size), in bytes."""

    base: int
    size: int

    @classmethod
    def to(cls, base: int, end: int) -> AddressRange:
        """Return [base, end)."""
        return cls(base, end - base)

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size

    def contains(self, base: int, size: int = 1) -> bool:
        """Tell whether all of [base, base + size) is in this range."""
        return self.base <= base and base + size <= self.base + self.size

    def overlaps(self, other: AddressRange) -> bool:
        """Tell whether this range and *other* have an address in common."""
        return self.base < other.end and other.base < self.end

    def intersection(self, other: AddressRange) -> int:
        """Return how many addresses this range and *other* have in common."""
        return max(0, min(self.end, other.end) - max(self.base, other.base))

    def __str__(self) -> str:
        return f"[{self.base:#x}, {self.end:#x})"
