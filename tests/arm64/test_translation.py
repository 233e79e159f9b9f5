"""The walk of a guest's stage 1 tables, against tables that a small builder writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arm64.translation import Mapped, Regime, TranslationError, translate

SHIFTS = {"4K": 12, "16K": 14, "64K": 16}
TG0 = {"4K": 0, "16K": 2, "64K": 1}
TG1 = {"4K": 2, "16K": 1, "64K": 3}


class Tables:
    """One half of a guest's address space, mapped leaf by leaf as the Arm ARM's figures have it."""

    def __init__(self, granule: str, bits: int, *, upper: bool, wide: bool) -> None:
        self.page, self.bits, self.upper, self.wide = SHIFTS[granule], bits, upper, wide
        self.ds = wide and granule != "64K"
        self.words: dict[int, int] = {}
        self._free = (0xA << 48 if wide else 0) + (1 << 40)
        self.root = self._table()
        size = 64 - bits
        tcr = (size << 16 | TG1[granule] << 30 | 1 << 7) if upper else (size | TG0[granule] << 14)
        tcr |= 0 if upper else 1 << 23  # the other half is off
        tcr |= (6 << 32 if wide else 5 << 32) | (1 << 59 if self.ds else 0)
        ttbr = self.root & (1 << 48) - 1 | (self.root >> 48 & 15) << 2 | 0x55 << 48 | 1
        self.regime = Regime(1, tcr, 0 if upper else ttbr, ttbr if upper else 0)

    def _table(self) -> int:
        self._free += 1 << 16
        return self._free

    def _descriptor(self, address: int, kind: int) -> int:
        low = address & (1 << 48) - 1
        if self.ds:
            return low | (address & 3 << 48) | (address >> 50 & 3) << 8 | kind
        return low | (address >> 48 & 15) << 12 | kind

    def map(self, virtual: int, physical: int, level: int) -> None:
        """Map the block or page of *virtual* at *level*."""
        stride = self.page - 3
        levels: list[tuple[int, int]] = []  # (level, lowest bit), from the last one up
        low = self.page
        while low < self.bits:
            levels.append((3 - len(levels), low))
            low += stride
        table = self.root
        for at, shift in reversed(levels):
            width = min(stride, self.bits - shift)
            entry = table + 8 * (virtual >> shift & (1 << width) - 1)
            if at == level:
                self.words[entry] = self._descriptor(physical, 3 if level == 3 else 1) | 1 << 10
                return
            if entry not in self.words:
                self.words[entry] = self._descriptor(self._table(), 3)
            word = self.words[entry]
            table = word & (1 << 48) - (1 << self.page)
            if self.ds:
                table |= word & 3 << 48 | (word >> 8 & 3) << 50
            elif self.wide:
                table |= (word >> 12 & 15) << 48
        raise AssertionError(f"no level {level}")

    def translate(self, virtual: int) -> Mapped:
        return translate(self.regime, lambda address: self.words.get(address, 0), virtual)


FORMS = [
    ("4K", 48, False, (1, 2, 3)),
    ("4K", 39, False, (1, 2, 3)),
    ("4K", 30, False, (2, 3)),
    ("4K", 52, True, (0, 1, 2, 3)),
    ("4K", 48, True, (0, 1, 2, 3)),
    ("16K", 48, False, (2, 3)),
    ("16K", 47, False, (2, 3)),
    ("16K", 52, True, (1, 2, 3)),
    ("64K", 48, False, (2, 3)),
    ("64K", 42, False, (2, 3)),
    ("64K", 52, True, (1, 2, 3)),
]


@given(
    st.sampled_from(FORMS),
    st.integers(0, 1),
    st.integers(0, (1 << 52) - 1),
    st.integers(0, (1 << 52) - 1),
    st.integers(0),
)
def test_a_mapped_address_is_where_its_leaf_puts_it(
    form: tuple[str, int, bool, tuple[int, ...]], upper: int, va: int, pa: int, pick: int
) -> None:
    granule, bits, wide, levels = form
    level = levels[pick % len(levels)]
    tables = Tables(granule, bits, upper=bool(upper), wide=wide)
    size = 1 << SHIFTS[granule] + (SHIFTS[granule] - 3) * (3 - level)
    virtual = va & (1 << bits) - 1
    if upper:
        virtual |= (1 << 64) - (1 << bits)
    elif virtual >> 55 & 1:
        return
    physical = pa & ((1 << 52 if wide else 1 << 48) - 1) & ~(size - 1)
    tables.map(virtual, physical, level)
    found = tables.translate(virtual)
    assert found.address == physical | virtual & (size - 1)
    assert (found.size, found.level) == (size, level)


def test_without_the_mmu_addresses_are_physical() -> None:
    def nothing(_address: int) -> int:
        raise AssertionError

    assert translate(Regime(0, 0, 0, 0), nothing, 0x4008_0000).address == 0x4008_0000


def test_linux_defaults_by_hand() -> None:
    """48 bits, 4 KiB: four levels of 9 bits; 0xffff800080010123 has indices 256, 2, 0 and 16."""
    words = {
        0x1000 + 8 * 256: 0x2003,
        0x2000 + 8 * 2: 0x3003,
        0x3000 + 8 * 0: 0x4003,
        0x4000 + 8 * 16: 0x0068_0000_4021_0783,
    }
    regime = Regime(1, 0x0000_00F5_B550_3510, 0, 0x0123_0000_0000_1000)
    found = translate(regime, lambda at: words.get(at, 0), 0xFFFF_8000_8001_0123)
    assert found == Mapped(0x4021_0123, 4096, 3, 0x0068_0000_4021_0783)


def _bad(tables: Tables, virtual: int, words: str) -> None:
    with pytest.raises(TranslationError, match=words):
        tables.translate(virtual)


def test_what_is_not_mapped_is_an_error() -> None:
    tables = Tables("4K", 48, upper=True, wide=False)
    tables.map(0xFFFF_8000_0000_0000, 0x4000_0000, 3)
    _bad(tables, 0xFFFF_8000_0000_1000, "no valid level 3 entry")
    _bad(tables, 0xFFFF_C000_0000_0000, "no valid level 0 entry")
    _bad(tables, 0x1000, "TCR_EL1.EPD0")
    _bad(tables, 0xFFF0_8000_0000_0000, "addresses of 48 bits")


@pytest.mark.parametrize(
    ("granule", "bits", "wide", "level"),
    [("4K", 48, False, 0), ("16K", 48, False, 1), ("64K", 52, False, 1), ("16K", 52, True, 0)],
)
def test_reserved_blocks_are_no_mapping(granule: str, bits: int, wide: int, level: int) -> None:
    tables = Tables(granule, bits, upper=False, wide=bool(wide))
    tables.map(0, 0, level)
    _bad(tables, 0, f"level {level} entry is reserved")


def test_a_level_3_entry_without_bit_1_is_reserved() -> None:
    tables = Tables("4K", 48, upper=False, wide=False)
    tables.map(0, 0x4000_0000, 3)
    last = max(tables.words)
    tables.words[last] &= ~2
    _bad(tables, 0, "level 3 entry is reserved")


def test_tags_are_ignored_where_tcr_says_so() -> None:
    tables = Tables("4K", 48, upper=False, wide=False)
    tables.map(0x1000, 0x4000_0000, 3)
    _bad(tables, 0xAB00_0000_0000_1000, "addresses of 48 bits")
    tables.regime = tables.regime._replace(tcr=tables.regime.tcr | 1 << 37)
    assert tables.translate(0xAB00_0000_0000_1000).address == 0x4000_0000


def test_reserved_granules_are_an_error() -> None:
    with pytest.raises(TranslationError, match="reserved"):
        translate(Regime(1, 16 | 3 << 14, 0, 0), lambda _: 0, 0x1000)


def test_what_read_raises_comes_through() -> None:
    def fail(address: int) -> int:
        raise ValueError(hex(address))

    tables = Tables("4K", 48, upper=False, wide=False)
    with pytest.raises(ValueError, match=hex(tables.root)):
        translate(tables.regime, fail, 0)
