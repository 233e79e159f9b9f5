"""Hardware breakpoints and watchpoints: values of DBGBCR, DBGBVR, DBGWCR and DBGWVR.

Source: Arm ARM D2.8 (breakpoints), D2.10 (watchpoints), D24.3 (the registers).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vmm.kvm.vcpu import DebugPair

LOAD: Final = 1
STORE: Final = 2
"""DBGWCR.LSC: which accesses a watchpoint is for; the sum is both."""

_ENABLE: Final = 1
_EL1_AND_EL0: Final = 3 << 1
"""PAC: privilege levels. KVM turns what is for EL1 into what is for the guest's EL1."""
_ALL_BYTES: Final = 0xF << 5
"""DBGBCR.BAS of an A64 instruction."""

_DOUBLEWORD: Final = 8
_LARGEST: Final = 1 << 31


class Counts(NamedTuple):
    """How many breakpoints and watchpoints there are registers for."""

    breakpoints: int
    watchpoints: int


def breakpoint_pair(address: int) -> DebugPair:
    """Return the registers of a breakpoint on the instruction at *address*."""
    return DebugPair(_ALL_BYTES | _EL1_AND_EL0 | _ENABLE, address & ~3)


def watchpoint_pairs(address: int, size: int, accesses: int) -> list[DebugPair]:
    """Return the registers of watchpoints on exactly *size* bytes from *address*, ascending.

    *accesses* is `LOAD`, `STORE` or their sum. A run of bytes inside a doubleword takes one pair
    (DBGWCR.BAS), as does an aligned power of two of up to 2 GiB (DBGWCR.MASK); other sizes take
    several. Raises ValueError if *size* is not positive.
    """
    if size <= 0:
        raise ValueError("a watchpoint has at least one byte")
    control = accesses << 3 | _EL1_AND_EL0 | _ENABLE
    pairs, end = [], address + size
    while address < end:
        start = address % _DOUBLEWORD
        length = min(_DOUBLEWORD - start, end - address)
        if start == 0:
            while length * 2 <= min(end - address, _LARGEST) and address % (length * 2) == 0:
                length *= 2
        if length > _DOUBLEWORD:
            pairs.append(DebugPair(control | 0xFF << 5 | (length.bit_length() - 1) << 24, address))
        else:
            bytes_ = ((1 << length) - 1) << start
            pairs.append(DebugPair(control | bytes_ << 5, address - start))
        address += length
    return pairs
