"""The ledger: promises, and the cache maintenance that follows from them."""

from __future__ import annotations

import pytest

from vmm.coherence.ledger import Entry, Ledger, Maintenance
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.errors import GuestAddressError
from vmm.memory import Backing


def entry(stage1: Stage1, stage2: Stage2, base: int = 0x4000_0000, size: int = 0x1000) -> Entry:
    return Entry(
        "a range", base, size, Backing.ANONYMOUS, Attribute(stage1, "s"), Promise(stage2, "p"), 0
    )


@pytest.mark.parametrize(
    ("stage1", "stage2", "owed"),
    [
        (Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK, Maintenance.NONE),
        (Stage1.CACHEABLE, Stage2.GUEST_DECIDES, Maintenance.CLEAN_AND_INVALIDATE),
        (Stage1.CACHEABLE, Stage2.NON_CACHEABLE, Maintenance.CLEAN_AND_INVALIDATE),
        (Stage1.CACHEABLE, Stage2.NO_SLOT, Maintenance.NONE),
        (Stage1.UNCACHED, Stage2.NON_CACHEABLE, Maintenance.NOT_OURS),
        (Stage1.UNKNOWN, Stage2.UNPROMISED, Maintenance.CLEAN_AND_INVALIDATE),
    ],
)
def test_maintenance_is_owed_wherever_our_cache_and_the_guest_may_disagree(
    stage1: Stage1, stage2: Stage2, owed: Maintenance
) -> None:
    assert entry(stage1, stage2).maintenance is owed


def test_ranges_may_not_overlap() -> None:
    ledger = Ledger([entry(Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK)])
    with pytest.raises(ValueError, match="overlaps"):
        ledger.add(entry(Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK, base=0x4000_0FFF))
    ledger.add(entry(Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK, base=0x4000_1000))
    assert [found.base for found in ledger] == [0x4000_0000, 0x4000_1000]


def test_an_access_is_one_ranges() -> None:
    ledger = Ledger([entry(Stage1.CACHEABLE, Stage2.GUEST_DECIDES)])
    ledger.before_read(0x4000_0000, memoryview(bytearray(0x1000)))
    ledger.before_write(0x4000_0001, memoryview(bytearray(0x0FFF)))
    ledger.before_write(0x4000_0001, memoryview(bytearray(0)))
    ledger.after_write(0x4000_0FFF, memoryview(bytearray(1)))
    with pytest.raises(GuestAddressError):
        ledger.before_read(0x4000_0FFF, memoryview(bytearray(2)))
    with pytest.raises(GuestAddressError):
        ledger.find(0x3FFF_FFFF)
