"""The scratch guest's table maps each address to itself, with every granule."""

from __future__ import annotations

import pytest

from vmm.coherence.scratch import MAILBOX, RAM, RAM_SIZE, RANGE, TABLE, TCR
from vmm.coherence.scratch_table import ADDRESS_BITS, Granule, choose, page_table
from vmm.errors import HostError

WALKS = {
    # The levels that translate 39 bits: the lowest bit that each resolves (Arm ARM D8.2).
    Granule.KIB_4: (30,),
    Granule.KIB_16: (36, 25),
    Granule.KIB_64: (29,),
}


def translate(table: bytes, at: int, granule: Granule, address: int) -> tuple[int, int]:
    """Walk *table* as the hardware does; return the output address and MAIR's index."""
    here, top = at, ADDRESS_BITS
    for shift in WALKS[granule]:
        index = address >> shift & (1 << top - shift) - 1
        start = here - at + index * 8
        descriptor = int.from_bytes(table[start : start + 8], "little")
        here, top = descriptor & ((1 << 48) - granule.value), shift
        if descriptor & 3 == 1:
            assert shift == WALKS[granule][-1]
            assert descriptor >> 10 & 1  # else the first access is an access flag fault
            base = descriptor & (1 << 48) - (1 << shift)
            return base | address & (1 << shift) - 1, descriptor >> 2 & 7
        assert descriptor & 3 == 3
        assert here % granule.value == 0
    raise AssertionError("the walk found no block")


@pytest.mark.parametrize("granule", Granule)
def test_the_table_maps_addresses_to_themselves(granule: Granule) -> None:
    at = RAM + TABLE
    table = page_table(granule, at, device_below=RAM)
    assert at % granule.value == 0
    assert TABLE + len(table) <= RAM_SIZE
    for address in (RAM, RAM + 0x1234, RANGE, RANGE + (100 << 30) + 5, (1 << ADDRESS_BITS) - 1):
        assert translate(table, at, granule, address) == (address, 0)
    for address in (0, MAILBOX, MAILBOX + 8, RAM - 1):
        assert translate(table, at, granule, address) == (address, 1)


def test_tcr_has_the_granule_and_the_size() -> None:
    assert TCR & 0x3F == 64 - ADDRESS_BITS
    assert [TCR | granule.tcr for granule in Granule] == [TCR, TCR | 2 << 14, TCR | 1 << 14]


@pytest.mark.parametrize(
    ("mmfr0", "expected"),
    [
        (0x0000_0000, Granule.KIB_4),
        (0x1020_0000, Granule.KIB_4),  # with 52-bit addresses
        (0xF000_0000, Granule.KIB_64),
        (0xF010_0000, Granule.KIB_64),
        (0xFF10_0000, Granule.KIB_16),
        (0xFF20_0000, Granule.KIB_16),
    ],
)
def test_a_granule_is_chosen_that_the_cpu_has(mmfr0: int, expected: Granule) -> None:
    assert choose(mmfr0) is expected


def test_a_cpu_without_granules_is_an_error() -> None:
    with pytest.raises(HostError, match="0xff000000"):
        choose(0xFF00_0000)
