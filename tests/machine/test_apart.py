"""Regions of ``--bar`` that would overlap in guest physical space are refused."""

from __future__ import annotations

import pytest

from vmm.address_range import AddressRange
from vmm.errors import UserError
from vmm.machine.address_space import check_apart

BASE = 0x1_0000_0000
SIZE = 0x1_0000
FIRST = ("first", AddressRange(BASE, SIZE))


@pytest.mark.parametrize(
    "second",
    [
        AddressRange(BASE, SIZE),
        AddressRange(BASE + SIZE - 1, SIZE),
        AddressRange(BASE - SIZE + 1, SIZE),
        AddressRange(BASE - SIZE, 4 * SIZE),
    ],
)
def test_an_overlap_is_refused(second: AddressRange) -> None:
    with pytest.raises(UserError) as refused:
        check_apart([FIRST, ("far", AddressRange(8 * BASE, SIZE)), ("second", second)])
    assert str(refused.value) == (
        f"--bar second: {second} overlaps --bar first at {FIRST[1]}; "
        "leave one of the addresses out, or use another"
    )


def test_neighbours_are_not_refused() -> None:
    above, below = AddressRange(BASE + SIZE, SIZE), AddressRange(BASE - SIZE, SIZE)
    check_apart([FIRST, ("above", above), ("below", below)])
