"""Hardware breakpoints and watchpoints cover the bytes that were asked for, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arm64.debug_registers import (
    LOAD,
    STORE,
    breakpoint_pair,
    watchpoint_pairs,
)
from vmm.kvm.vcpu import DebugPair


def covered(pair: DebugPair) -> range:
    """Return the bytes that a watchpoint matches, as the Arm ARM's D2.10.5 has it."""
    mask, selected = pair.control >> 24 & 31, pair.control >> 5 & 0xFF
    if mask:
        assert selected == 0xFF
        assert mask >= 3
        assert pair.value % (1 << mask) == 0
        return range(pair.value, pair.value + (1 << mask))
    assert pair.value % 8 == 0
    first = (selected & -selected).bit_length() - 1
    last = selected.bit_length()
    assert selected == (1 << last) - (1 << first), "BAS is one run of bytes"
    return range(pair.value + first, pair.value + last)


@given(st.integers(0, 1 << 48), st.integers(1, 300))
def test_watchpoints_cover_exactly_the_bytes(address: int, size: int) -> None:
    ranges = [covered(pair) for pair in watchpoint_pairs(address, size, STORE)]
    assert [byte for each in ranges for byte in each] == list(range(address, address + size))


@pytest.mark.parametrize(("address", "size"), [(0x1001, 1), (0x1000, 8), (0x2000, 0x1000)])
def test_what_one_register_can_have_takes_one(address: int, size: int) -> None:
    assert len(watchpoint_pairs(address, size, LOAD)) == 1


def test_the_largest_mask_is_2_gib() -> None:
    pairs = watchpoint_pairs(0, 1 << 33, LOAD | STORE)
    assert [covered(pair) for pair in pairs] == [range(n << 31, n + 1 << 31) for n in range(4)]


def test_values_by_hand() -> None:
    assert breakpoint_pair(0xFFFF_8000_8001_0004) == DebugPair(0x1E7, 0xFFFF_8000_8001_0004)
    assert watchpoint_pairs(0x1004, 4, LOAD | STORE) == [DebugPair(0xF0 << 5 | 0x1F, 0x1000)]


def test_nothing_to_watch_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        watchpoint_pairs(0, 0, LOAD)
