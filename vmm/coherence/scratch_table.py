"""The scratch guest's stage 1: an identity map of Normal Write-Back blocks, with any granule.

    granule   table                          blocks
    4 KiB     level 1, 512 entries           1 GiB
    16 KiB    level 1, 8 entries, 8 tables   32 MiB
    64 KiB    level 2, 1024 entries          512 MiB

Source: Arm ARM D8.2 (translation granules), D8.3 (descriptors); D24.2, ID_AA64MMFR0_EL1.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final

from vmm.errors import HostError

ADDRESS_BITS: Final = 39
"""Of the addresses that the table translates."""

BLOCK: Final = 1 << 0 | 1 << 10 | 3 << 8
"""A block: access flag set, inner shareable, attribute 0."""
TABLE: Final = 3 << 0
ATTRIBUTE_1: Final = 1 << 2


class Granule(Enum):
    """A translation granule; the values are in bytes."""

    KIB_4 = 4096
    KIB_16 = 16384
    KIB_64 = 65536

    @property
    def tcr(self) -> int:
        """TCR_EL1.TG0."""
        return {Granule.KIB_4: 0, Granule.KIB_64: 1, Granule.KIB_16: 2}[self] << 14

    @property
    def block(self) -> int:
        """Bytes that one block of the table maps."""
        return {Granule.KIB_4: 1 << 30, Granule.KIB_16: 32 << 20, Granule.KIB_64: 512 << 20}[self]


def choose(mmfr0: int) -> Granule:
    """Return a granule that ID_AA64MMFR0_EL1 has at stage 1. Raises `HostError` if it has none."""
    if mmfr0 >> 28 & 0xF != 0xF:  # TGran4
        return Granule.KIB_4
    if mmfr0 >> 24 & 0xF != 0xF:  # TGran64
        return Granule.KIB_64
    if mmfr0 >> 20 & 0xF:  # TGran16
        return Granule.KIB_16
    raise HostError(f"the CPU has no translation granule: ID_AA64MMFR0_EL1 is {mmfr0:#x}")


def page_table(granule: Granule, address: int, *, device_below: int) -> bytes:
    """Return the table that is to be at *address*, which is a multiple of *granule*.

    It maps 2**`ADDRESS_BITS` bytes to themselves: with attribute 1 of MAIR_EL1 below
    *device_below*, a multiple of 1 GiB, and with attribute 0 from there on.
    """
    blocks = [
        base | BLOCK | (ATTRIBUTE_1 if base < device_below else 0)
        for base in range(0, 1 << ADDRESS_BITS, granule.block)
    ]
    table = struct.pack(f"<{len(blocks)}Q", *blocks)
    if len(table) <= granule.value:
        return table
    first = address + granule.value
    root = [at | TABLE for at in range(first, first + len(table), granule.value)]
    return struct.pack(f"<{len(root)}Q", *root).ljust(granule.value, b"\0") + table
