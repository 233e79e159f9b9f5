"""Stage 1 of a guest at EL1 and EL0: from a virtual address to the guest physical one (IPA).

    TTBR --> table of the start level --> ... --> block or page descriptor
             |     index = a slice of the address at each level     |
             '---- as many as the input size and the granule take --'

A debugger asks, not the guest: access permissions and the access flag are not looked at.
Source: Arm ARM D8.2 (translation process), D8.3 (descriptor formats), D24.2 (TCR_EL1, TTBRn_EL1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.arm64.register_names import id_of
from vmm.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable

_LAST: Final = 3
"""The level whose valid descriptors are pages."""

_TG0: Final = {0: 12, 1: 16, 2: 14}
_TG1: Final = {1: 14, 2: 12, 3: 16}
"""TCR_EL1.TG0 and TG1: granules, as the number of address bits inside a page."""

_BLOCKS: Final = {12: (1, 2), 14: (2,), 16: (2,)}
_BLOCKS_52: Final = {12: (0, 1, 2), 14: (1, 2), 16: (1, 2)}
"""Levels that may have blocks, by granule; with 52-bit output addresses there is one more."""

_IPS_52: Final = 6
_LOWEST_TNSZ: Final = 12


class TranslationError(GuestError):
    """The guest's tables map no memory at an address."""


class Regime(NamedTuple):
    """The registers that stage 1 of EL1&0 goes by, as one vCPU has them."""

    sctlr: int
    tcr: int
    ttbr0: int
    ttbr1: int

    @property
    def is_on(self) -> bool:
        """SCTLR_EL1.M: without it, virtual addresses are physical ones."""
        return bool(self.sctlr & 1)


class Mapped(NamedTuple):
    """Where a virtual address is.

    address     the guest physical address
    size        bytes of the block or page that has it; 0: stage 1 is off
    level       of the descriptor, -1 to 3
    descriptor  the block or page descriptor; 0: stage 1 is off
    """

    address: int
    size: int
    level: int
    descriptor: int


def regime(get: Callable[[int], int]) -> Regime:
    """Return the regime of a vCPU; *get* returns its register with a KVM_REG_* id."""
    return Regime(*(get(id_of(f"{name}_EL1")) for name in ("SCTLR", "TCR", "TTBR0", "TTBR1")))


class _Half(NamedTuple):
    """One of the two ranges of virtual addresses: how TCR_EL1 has it."""

    ttbr: int
    bits: int  # of an input address that the tables translate
    page: int  # bits of an address inside a page
    wide: bool  # tables and blocks have 52-bit addresses
    ds: bool  # in the format of TCR_EL1.DS

    def output(self, descriptor: int) -> int:
        """Return the address in *descriptor*, of a table, block or page, as far as it is one."""
        address = descriptor & (1 << 48) - (1 << self.page)
        if self.ds:
            return address | (descriptor & 3 << 48) | (descriptor >> 8 & 3) << 50
        return address | (descriptor >> 12 & 15) << 48 if self.wide else address


def translate(regime_: Regime, read: Callable[[int], int], address: int) -> Mapped:
    """Walk the guest's tables for virtual *address*, 0 to 2**64 - 1.

    *read* returns the 8-byte descriptor at a guest physical address, and raises what it raises.
    Raises `TranslationError`.
    """
    if not regime_.is_on:
        return Mapped(address, 0, _LAST, 0)
    half = _half(regime_, address)
    stride = half.page - 3
    levels = -(-(half.bits - half.page) // stride)
    level = _LAST + 1 - levels
    shift = half.page + stride * (levels - 1)
    index_bits = half.bits - shift
    table = _first_table(half, index_bits)
    while True:
        index = address >> shift & (1 << index_bits) - 1
        descriptor = read(table + 8 * index)
        if not descriptor & 1:
            what = f"it has no valid level {level} entry"
            raise TranslationError(f"{address:#x} is not mapped: {what}")
        output = half.output(descriptor)
        if level == _LAST or not descriptor & 2:
            _check_leaf(half, level, descriptor, address)
            inside = (1 << shift) - 1
            return Mapped(output & ~inside | address & inside, 1 << shift, level, descriptor)
        table, level, shift, index_bits = output, level + 1, shift - stride, stride


def _check_leaf(half: _Half, level: int, descriptor: int, address: int) -> None:
    """Raise `TranslationError` if *descriptor* is reserved at *level*."""
    blocks = (_BLOCKS_52 if half.wide else _BLOCKS)[half.page]
    if not descriptor & 2 and level not in blocks:
        raise TranslationError(f"{address:#x} is not mapped: its level {level} entry is reserved")


def _half(regime_: Regime, address: int) -> _Half:
    """Return the half that *address* is in. Raises `TranslationError` if it is in none."""
    tcr, upper = regime_.tcr, address >> 55 & 1
    size, granule, off, tbi = (
        (tcr >> 16 & 63, _TG1.get(tcr >> 30 & 3), tcr >> 23 & 1, tcr >> 38 & 1)
        if upper
        else (tcr & 63, _TG0.get(tcr >> 14 & 3), tcr >> 7 & 1, tcr >> 37 & 1)
    )
    name = f"TTBR{upper}_EL1"
    if off:
        raise TranslationError(f"{address:#x} is not mapped: TCR_EL1.EPD{upper} has {name} off")
    if granule is None or not _LOWEST_TNSZ <= size <= 48:
        raise TranslationError(f"{address:#x}: TCR_EL1 is {tcr:#x}, which has reserved values")
    bits = 64 - size
    top = 56 if tbi else 64
    wanted = (1 << top - bits) - 1 if upper else 0
    if address >> bits & (1 << top - bits) - 1 != wanted:
        raise TranslationError(f"{address:#x} is not mapped: {name} has addresses of {bits} bits")
    ds = granule != 16 and bool(tcr >> 59 & 1)
    wide = ds or (granule == 16 and tcr >> 32 & 7 == _IPS_52)
    ttbr = regime_.ttbr1 if upper else regime_.ttbr0
    return _Half(ttbr, bits, granule, wide, ds)


def _first_table(half: _Half, index_bits: int) -> int:
    """Return the address of the start level's table, which has 2**index_bits entries."""
    if half.wide:
        return half.ttbr & 0xFFFF_FFFF_FFC0 | (half.ttbr >> 2 & 15) << 48
    return half.ttbr & (1 << 48) - (1 << index_bits + 3)
