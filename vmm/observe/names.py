"""Names of guest physical addresses: disjoint ranges, for exits."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from vmm.address_range import AddressRange

if TYPE_CHECKING:
    from collections.abc import Iterable

NOTHING = "nothing"
"""What an address without a name is called."""


class Named(NamedTuple):
    """Guest physical *addresses* and what is there."""

    addresses: AddressRange
    name: str


def disjoint(named: Iterable[Named]) -> list[Named]:
    """Return *named* by ascending address, without overlaps: a smaller range goes before a larger.

    What is left of a larger range keeps its name.
    """
    found: list[Named] = []
    for each in sorted(named, key=lambda entry: entry.addresses.size):
        rest = [each.addresses]
        for other in found:
            rest = [part for whole in rest for part in _without(whole, other.addresses)]
        found += [Named(part, each.name) for part in rest]
    return sorted(found)


def _without(whole: AddressRange, hole: AddressRange) -> list[AddressRange]:
    """Return what of *whole* is not in *hole*."""
    if not whole.overlaps(hole):
        return [whole]
    below = AddressRange(whole.base, max(0, hole.base - whole.base))
    above = AddressRange(hole.end, max(0, whole.end - hole.end))
    return [part for part in (below, above) if part.size]


def find(named: list[Named], address: int) -> str:
    """Return the name of *address* in *named*, as `disjoint` returns it; or `NOTHING`."""
    index = bisect_right(named, address, key=lambda entry: entry.addresses.base) - 1
    if index >= 0 and named[index].addresses.contains(address):
        return named[index].name
    return NOTHING
