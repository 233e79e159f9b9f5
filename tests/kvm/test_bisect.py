"""Why a slot is EINVAL, by what a scratch VM takes. Regions of devices are in tests/lab."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from vmm.coherence.bisect import bisect
from vmm.coherence.explain import RequestedSlot
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping

PAGE, IPA = mmap.PAGESIZE, 0x4000_0000


@pytest.fixture
def memory() -> Iterator[int]:
    with Mapping.anonymous(16 * PAGE) as mapping:
        yield mapping.region(0).host_address


def test_what_a_new_vm_takes_is_the_vms_own_state(system: System, memory: int) -> None:
    cause = bisect(system, RequestedSlot(0, 0, IPA, 4 * PAGE, memory))
    assert cause is not None
    assert "this VM's state" in cause.what


@pytest.mark.parametrize("known", [0, MemFlag.LOG_DIRTY_PAGES])
def test_the_flag_that_is_refused_is_named(system: System, memory: int, known: int) -> None:
    cause = bisect(system, RequestedSlot(None, 1 << 20 | known, IPA, 4 * PAGE, memory))
    assert cause is not None
    assert "without 0x100000" in cause.what


def test_where_two_things_are_wrong_nothing_is_said(system: System, memory: int) -> None:
    assert bisect(system, RequestedSlot(None, 3 << 20, IPA, 4 * PAGE, memory)) is None
    assert bisect(system, RequestedSlot(None, 1 << 20, IPA + 8, 4 * PAGE, memory)) is None


def test_a_size_that_is_no_multiple_of_a_page_is_found(system: System, memory: int) -> None:
    cause = bisect(system, RequestedSlot(None, 0, IPA, PAGE + 8, memory))
    assert cause is not None
    assert f"but not {PAGE + 8:#x} bytes" in cause.what
