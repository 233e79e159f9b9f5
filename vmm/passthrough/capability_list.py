"""A device's lists of capabilities, and which of them the guest sees.

A function has two lists: from 0x34 the capabilities of PCI (one byte of ID, one of link), from
0x100 the extended ones of PCI Express (a word: ID, version, link). VFIO has already removed what no
user may have. This module removes what describes a fabric that the guest does not have. Source: PCI
Local Bus Specification 3.0, 6.7; PCI Express Base Specification, 7.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], int]
    """(offset, size) to a value of configuration space."""

HIDDEN: Final = frozenset({lib.PCI_CAP_ID_EA})
"""Enhanced Allocation: BARs with fixed addresses, which would be the host's."""

HIDDEN_EXTENDED: Final = frozenset(
    {
        lib.PCI_EXT_CAP_ID_MFVC,  # other functions of the device
        lib.PCI_EXT_CAP_ID_ARI,
        lib.PCI_EXT_CAP_ID_ACS,  # peer-to-peer routing
        lib.PCI_EXT_CAP_ID_MCAST,
        lib.PCI_EXT_CAP_ID_ATS,  # an IOMMU in the guest
        lib.PCI_EXT_CAP_ID_PRI,
        lib.PCI_EXT_CAP_ID_PASID,
        lib.PCI_EXT_CAP_ID_SRIOV,  # virtual functions, which VFIO would not give
        lib.PCI_EXT_CAP_ID_MRIOV,
        lib.PCI_EXT_CAP_ID_REBAR,  # regions keep the size they had when they were opened
        lib.PCI_EXT_CAP_ID_DPC,  # a link and a port above it
        lib.PCI_EXT_CAP_ID_L1SS,
        lib.PCI_EXT_CAP_ID_PTM,
    }
)

EXTENDED: Final[int] = lib.PCI_CFG_SPACE_SIZE
"""Offset of the first extended capability."""


class CapabilityEntry(NamedTuple):
    """One capability of a list: its ID and its offset."""

    kind: int
    offset: int


def capabilities(read: Read) -> list[CapabilityEntry]:
    """Return the capabilities of a function, in order, up to the first invalid link."""
    found: list[CapabilityEntry] = []
    if not read(lib.PCI_STATUS, 2) & lib.PCI_STATUS_CAP_LIST:
        return found
    offset = read(lib.PCI_CAPABILITY_LIST, 1) & ~3
    while offset >= lib.PCI_STD_HEADER_SIZEOF and offset not in {one.offset for one in found}:
        found.append(CapabilityEntry(read(offset, 1), offset))
        offset = read(offset + lib.PCI_CAP_LIST_NEXT, 1) & ~3
    return found


def extended_capabilities(read: Read, size: int) -> list[CapabilityEntry]:
    """Return the extended capabilities of a function with *size* bytes of configuration space."""
    found: list[CapabilityEntry] = []
    offset = EXTENDED
    while EXTENDED <= offset <= size - 4 and offset not in {one.offset for one in found}:
        header = read(offset, 4)
        if header in (0, 0xFFFF_FFFF):
            break
        found.append(CapabilityEntry(header & 0xFFFF, offset))
        offset = header >> 20 & ~3
    return found


def links(read: Read) -> dict[int, int]:
    """Return the link bytes of the list without hidden capabilities, by offset.

    The first is at PCI_CAPABILITY_LIST.
    """
    at: int = lib.PCI_CAPABILITY_LIST
    found = {}
    for one in capabilities(read):
        if one.kind not in HIDDEN:
            found[at] = one.offset
            at = one.offset + int(lib.PCI_CAP_LIST_NEXT)
    found[at] = 0
    return found


def extended_headers(read: Read, size: int) -> dict[int, int]:
    """Return the header words of the extended list without hidden capabilities, by offset.

    The list starts at a fixed offset, so a hidden first capability becomes ID 0, the null
    capability, with a link.
    """
    listed = extended_capabilities(read, size)
    shown = [one for one in listed if one.kind not in HIDDEN_EXTENDED]
    following = {one.offset: other.offset for one, other in pairwise(shown)}
    found = {
        one.offset: read(one.offset, 4) & 0xF_FFFF | following.get(one.offset, 0) << 20
        for one in shown
    }
    if listed and EXTENDED not in found:
        found[EXTENDED] = (shown[0].offset << 20) if shown else 0
    return found
