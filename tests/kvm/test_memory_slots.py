"""Memory slots: KVM_SET_USER_MEMORY_REGION and what it refuses."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

import pytest

from vmm.kvm.capability import Cap
from vmm.kvm.fd import KvmError
from vmm.kvm.slots import MemorySlots
from vmm.kvm.vm import MemFlag, Vm
from vmm.memory import Mapping, Region

pytestmark = pytest.mark.kvm
PAGE = mmap.PAGESIZE


@pytest.fixture(params=["anonymous", "memfd"])
def region(request: pytest.FixtureRequest) -> Iterator[Region]:
    with getattr(Mapping, request.param)(64 * PAGE) as mapping:
        yield mapping.region(0x10_0000)


def refused(error: pytest.ExceptionInfo[KvmError]) -> int:
    assert error.value.hint, "every refusal is explained"
    return error.value.errno


def test_a_slot_can_be_added_found_and_removed(vm: Vm, region: Region) -> None:
    slots = MemorySlots(vm)
    slot = slots.add(region.base, region.size, region.host_address)
    assert slots.find(region.end - 1) is slot
    assert slots.find(region.end) is None
    slots.remove(slot)
    assert list(slots) == []
    slots.add(region.base, region.size, region.host_address)  # and its place is free again


def test_overlapping_slots_are_refused(vm: Vm, region: Region) -> None:
    slots = MemorySlots(vm)
    slots.add(region.base, region.size, region.host_address)
    with pytest.raises(KvmError) as error:
        slots.add(region.end - PAGE, region.size, region.host_address)
    assert refused(error) == errno.EEXIST


@pytest.mark.parametrize(("base", "size"), [(1, 0), (0, 1), (PAGE // 2, 0), (0, -PAGE // 2)])
def test_addresses_and_sizes_are_multiples_of_the_page(
    vm: Vm, region: Region, base: int, size: int
) -> None:
    with pytest.raises(KvmError) as error:
        vm.set_user_memory_region(0, 0, region.base + base, region.size + size, region.host_address)
    assert refused(error) == errno.EINVAL
    assert "KVM_SET_USER_MEMORY_REGION(slot=0" in str(error.value)


def test_an_unknown_flag_is_refused(vm: Vm, region: Region) -> None:
    with pytest.raises(KvmError) as error:
        vm.set_user_memory_region(0, 1 << 31, region.base, region.size, region.host_address)
    assert refused(error) == errno.EINVAL


def test_a_read_only_slot_cannot_become_writable_while_live(vm: Vm, region: Region) -> None:
    if not vm.check_extension(Cap.READONLY_MEM):
        pytest.skip("this KVM has no read-only slots")
    where = (region.base, region.size, region.host_address)
    vm.set_user_memory_region(0, MemFlag.READONLY, *where)
    with pytest.raises(KvmError) as error:
        vm.set_user_memory_region(0, 0, *where)
    assert refused(error) == errno.EINVAL


def test_dirty_logging_can_be_switched_on_a_live_slot(vm: Vm, region: Region) -> None:
    where = (region.base, region.size, region.host_address)
    vm.set_user_memory_region(0, 0, *where)
    with pytest.raises(KvmError) as error:
        vm.get_dirty_log(0, 64)
    assert refused(error) == errno.ENOENT
    vm.set_user_memory_region(0, MemFlag.LOG_DIRTY_PAGES, *where)
    assert vm.get_dirty_log(0, 64) == bytes(8)


def test_region2_takes_what_region_takes(vm: Vm, region: Region) -> None:
    if not vm.check_extension(Cap.USER_MEMORY2):
        with pytest.raises(KvmError, match=r"REGION2.*older than KVM_CAP_USER_MEMORY2"):
            vm.set_user_memory_region2(0, 0, region.base, region.size, region.host_address)
        return
    vm.set_user_memory_region2(0, 0, region.base, region.size, region.host_address)
    vm.set_user_memory_region2(0, 0, region.base, 0, region.host_address)


def test_every_slot_taken_is_said(vm: Vm, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = MemorySlots(vm)
    monkeypatch.setattr(slots, "_limit", 1)
    slots.add(region.base, region.size, region.host_address)
    with pytest.raises(KvmError) as error:
        slots.add(region.end, region.size, region.host_address)
    assert error.value.errno == errno.ENOSPC
