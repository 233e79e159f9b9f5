"""Intervals of addresses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmm.address_range import AddressRange

small = st.integers(0, 40)
ranges = st.builds(AddressRange, small, small)


def inside(range_: AddressRange) -> set[int]:
    return set(range(range_.base, range_.end))


def test_it_is_half_open() -> None:
    assert str(AddressRange(0x1000, 0x200)) == "[0x1000, 0x1200)"
    assert AddressRange.to(0x1000, 0x1200) == AddressRange(0x1000, 0x200)


@given(ranges, ranges)
def test_what_two_have_in_common_is_what_their_addresses_have(
    one: AddressRange, other: AddressRange
) -> None:
    common = inside(one) & inside(other)
    assert one.intersection(other) == len(common)
    if one.size and other.size:
        assert one.overlaps(other) is bool(common)


@given(ranges, small, st.integers(1, 40))
def test_it_contains_what_is_all_inside(one: AddressRange, base: int, size: int) -> None:
    assert one.contains(base, size) is (inside(AddressRange(base, size)) <= inside(one))
