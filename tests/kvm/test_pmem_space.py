"""Files that are memory, in a machine's guest physical space: their slots, and the ledger."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from vmm.address_range import AddressRange
from vmm.arm64 import layout
from vmm.coherence import dax, vma
from vmm.config import MachineConfig
from vmm.config.pmem import PmemConfig
from vmm.errors import UserError
from vmm.kvm.slots import MemorySlot, MemorySlots
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag, Vm
from vmm.machine.address_space import PMEM_ALIGNMENT, AddressSpace
from vmm.memory import Backing
from vmm.virtio.pmem_file import PmemFile

pytestmark = pytest.mark.kvm

MEMORY, SIZE = 64 << 20, 4 << 20


def config(*pmems: PmemConfig) -> MachineConfig:
    return MachineConfig(image=Path("Image"), memory=MEMORY, pmems=pmems)


def test_files_lie_above_ram_and_have_slots_of_their_own(
    system: System, vm: Vm, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    pmems = PmemConfig(one, size=SIZE), PmemConfig(other, read_only=True)
    with AddressSpace(config(*pmems), system) as space:
        slots = MemorySlots(vm)
        space.plug(slots)
        ram, first, second = slots
        assert (ram.guest_phys_addr, ram.memory_size) == (layout.RAM, MEMORY)
        assert [each.guest_phys_addr % PMEM_ALIGNMENT for each in (first, second)] == [0, 0]
        assert first.addresses.end <= second.guest_phys_addr
        assert space.end == second.addresses.end
        assert [each.flags & MemFlag.READONLY for each in (first, second)] == [0, MemFlag.READONLY]
        assert [region.backing for region in space.dma] == [Backing.ANONYMOUS]
        assert [region.base for region in space.memory] == [each.guest_phys_addr for each in slots]
        space.memory.write(first.guest_phys_addr + 10, b"there")
        assert one.read_bytes()[10:15] == b"there"
        space.discard()
        assert one.read_bytes()[10:15] == b"there", "a reset is no reason to lose it"
        space.unplug()
        for slot in list(slots):
            slots.remove(slot)


def test_the_ledger_has_them(system: System, vm: Vm, tmp_path: Path) -> None:
    with AddressSpace(config(PmemConfig(tmp_path / "file", size=SIZE)), system) as space:
        slots = MemorySlots(vm)
        space.plug(slots)
        shown = MemorySlot(9, MemFlag.READONLY, 0, SIZE, 1 << 21)
        flash, ram, pmem = space.ledger([("flash", shown)])
        assert (flash.name, flash.base, flash.slot, flash.flags) == ("flash", 0, 9, shown.flags)
        assert flash.promise == ram.promise
        assert (ram.name, ram.backing) == ("RAM", Backing.ANONYMOUS)
        assert (pmem.name, pmem.backing, pmem.size) == ("pmem", Backing.FILE, SIZE)
        assert pmem.promise == ram.promise
        assert pmem.maintenance is ram.maintenance
        space.unplug()
        for slot in list(slots):
            slots.remove(slot)


def test_a_file_that_the_host_cannot_reach_is_refused(system: System, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(UserError, match=r"--pmem .*end beyond"):
        AddressSpace(config(PmemConfig(path, size=1 << system.ipa_bits())), system)
    assert not path.exists()


@pytest.mark.parametrize(("is_dax", "proofs"), [(True, 1), (None, 1), (False, 0)])
def test_a_file_that_may_be_on_dax_has_to_be_proved_cacheable(
    is_dax: bool | None,  # noqa: FBT001  (a parameter of the test)
    proofs: int,
    system: System,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(PmemFile, "is_dax", is_dax)
    monkeypatch.setattr(dax, "check", lambda option, *_: checked.append(option))
    path = tmp_path / "file"
    with AddressSpace(config(PmemConfig(path, size=SIZE)), system):
        assert checked == [f"--pmem {path}"] * proofs


@pytest.mark.parametrize(("flag", "fate"), [("pf", "refused"), ("mm", "proved"), ("hg", "taken")])
def test_what_is_mapped_as_a_devices_memory_is_no_file(
    flag: str, fate: str, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/sys/bus/pci/devices/*/resource0 is a regular file: PFNMAP, and uncached."""
    behind = vma.Vma(AddressRange(0, 1 << 48), "rw-s", "resource0", frozenset({flag}))
    monkeypatch.setattr(vma, "find", lambda _address: behind)
    checked: list[str] = []
    monkeypatch.setattr(dax, "check", lambda option, *_: checked.append(option))
    path = tmp_path / "resource0"
    with ExitStack() as owned:
        if fate == "refused":
            with pytest.raises(UserError, match=r"no file but a device's memory.*resource0"):
                AddressSpace(config(PmemConfig(path, size=SIZE)), system)
        else:
            owned.enter_context(AddressSpace(config(PmemConfig(path, size=SIZE)), system))
    assert bool(checked) is (fate == "proved")
