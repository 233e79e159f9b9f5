"""One region of a device as a guest's memory.

A memfd stands in for the device's file, and for KVM its rules for memory slots, generation by
generation (arch/arm64/kvm/mmu.c).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from tests.coherence.hosts import features
from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.coherence import stage1
from vmm.coherence.capability import FlagAnswer, Generation, HostCapability, judge
from vmm.coherence.policy import NVGRACE, Stage2, with_uapi
from vmm.coherence.verdict import MemoryType, Verdict
from vmm.coherence.vma import Vma
from vmm.config import MachineConfig
from vmm.config.bar import BarConfig
from vmm.errors import HostError, UserError
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.slots import MemorySlots
from vmm.kvm.vm import MemFlag
from vmm.machine.address_space import AddressSpace
from vmm.passthrough.region_memory import RegionMemory, without
from vmm.vfio.fd import VfioError, VfioFd
from vmm.vfio.region import VfioRegion
from vmm.vfio.region_info import RegionInfo

if TYPE_CHECKING:
    from vmm.kvm.system import System

MIB = 1 << 20
SIZE = 8 * MIB
BASE = 0x1_0000_0000
BDF = "0000:01:00.0"
SPARSE = (AddressRange(0, 2 * MIB), AddressRange(4 * MIB, 2 * MIB))
FLAGS = lib.VFIO_REGION_INFO_FLAG_READ | lib.VFIO_REGION_INFO_FLAG_WRITE
NO, YES = FlagAnswer.UNSUPPORTED, FlagAnswer.ACCEPTED


@dataclass
class Kernel:
    """The memory slots of KVM: a host's answers, and how it maps a cacheable VMA."""

    on_system: int | None
    on_vm: int
    bit3: FlagAnswer
    cacheable: bool
    fwb: bool = True
    slots: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """All that were ever made, scratch VMs' included."""

    @property
    def capability(self) -> HostCapability:
        cpu = features(fwb=self.fwb)
        support, generation, evidence = judge(self.on_system, self.on_vm, self.bit3, cpu)
        flags = {"WRITE_BACK": {"KVM_SET_USER_MEMORY_REGION": self.bit3}}
        return HostCapability(
            support, generation, self.on_system, self.on_vm, 4096, 40, cpu, flags, evidence
        )

    def create_vm(self, end: int = 0) -> Self:
        del end
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check_extension(self, _capability: int) -> int:
        return 0

    def set_user_memory_region(
        self, slot: int, flags: int, base: int, size: int, address: int
    ) -> None:
        asked = bool(flags & MemFlag.WRITE_BACK)
        known = self.capability.generation
        if size and (
            (asked and self.bit3 is NO)
            or (known is Generation.MAINLINE and self.cacheable and not self.on_vm)
            or (known is Generation.RFC and asked is not self.cacheable)
        ):
            raise KvmError(Ioctl.KVM_SET_USER_MEMORY_REGION, errno.EINVAL, {"slot": slot})
        self.slots.append((slot, flags, base, size, address))

    @property
    def now(self) -> list[tuple[int, int, int]]:
        """Flags, base and size of the slots that are there."""
        live = {slot: (flags, base, size) for slot, flags, base, size, _ in self.slots}
        return [one for one in live.values() if one[2]]


LEGACY = Kernel(0, 0, NO, cacheable=True)
MAINLINE = Kernel(None, 1, NO, cacheable=True)
MAINLINE_NOFWB = Kernel(None, 0, NO, cacheable=True, fwb=False)
RFC = Kernel(None, 2, YES, cacheable=True)
STRAY = Kernel(0, 0, YES, cacheable=True)
"""Bit 3 means something else; 243 is unknown: cacheable memory becomes Device, flag or no flag."""


DEVICE = stage1.Evidence(stage1.Says.DEVICE, "an unaligned load faults")
NORMAL = stage1.Evidence(stage1.Says.NORMAL, "an unaligned load works")
GUESTS = {
    True: Verdict(MemoryType.FORCED_WRITE_BACK, ("seen",)),
    False: Verdict(MemoryType.NON_CACHEABLE, ("seen",)),
}
VARIANT = "some-vfio-pci"
"""A driver that pyvmm knows nothing of."""


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[stage1.Evidence]:
    """Return what loads show, to be filled; the memfd passes for a device's PFNMAP."""
    seen: list[stage1.Evidence] = []
    device = Vma(AddressRange(0, 1 << 48), "rw-s", "/dev/vfio/devices/vfio0", frozenset({"pf"}))
    monkeypatch.setattr("vmm.coherence.vma.find", lambda _address: device)
    monkeypatch.setattr(stage1, "look", lambda _areas: seen or [NORMAL])
    monkeypatch.setattr(stage1, "prove", lambda kernel, *_: GUESTS[kernel.cacheable])
    return seen


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as owned:
        yield owned


def memory(
    owned: ExitStack,
    kernel: Kernel,
    *,
    driver: str = NVGRACE,
    cache: str = "auto",
    areas: tuple[AddressRange, ...] = (AddressRange(0, SIZE),),
    capability: HostCapability | None = None,
) -> RegionMemory:
    fd = os.memfd_create("device")
    os.ftruncate(fd, SIZE)
    file = owned.enter_context(VfioFd(fd, BDF))
    region = VfioRegion(BDF, RegionInfo(4, SIZE, 0, FLAGS, areas), file)
    device: Any = SimpleNamespace(
        bdf=BDF,
        function=SimpleNamespace(driver=driver),
        region=lambda _index: region,
        enable_memory=lambda: None,
        memory_enabled=True,
    )
    config = BarConfig(BDF, 4, cache=cache)
    system: Any = kernel
    made = RegionMemory(config, device, system, capability or kernel.capability)
    made.base = BASE
    return owned.enter_context(made)


def fresh(kernel: Kernel, **changed: Any) -> Kernel:
    return replace(kernel, slots=[], **changed)


def plugged(made: RegionMemory, kernel: Kernel) -> MemorySlots:
    kernel.slots.clear()
    vm: Any = kernel
    slots = MemorySlots(vm)
    made.plug(slots)
    return slots


@pytest.mark.parametrize("cache", ["auto", "require"])
@pytest.mark.parametrize("kernel", [LEGACY, STRAY, MAINLINE_NOFWB], ids=str)
def test_what_cannot_be_write_back_is_refused_before_any_slot_exists(
    owned: ExitStack, kernel: Kernel, cache: str
) -> None:
    kernel = fresh(kernel)
    with pytest.raises(HostError, match="243"):
        memory(owned, kernel, cache=cache)
    assert kernel.slots == []


@pytest.mark.parametrize("kernel", [LEGACY, MAINLINE, RFC], ids=str)
def test_what_is_forbidden_has_no_slot_and_a_line_in_the_ledger(
    owned: ExitStack, kernel: Kernel
) -> None:
    made = memory(owned, kernel := fresh(kernel), cache="forbid")
    plugged(made, kernel)
    assert kernel.slots == []
    assert [(entry.promise.stage2, entry.size) for entry in made.entries] == [
        (Stage2.NO_SLOT, SIZE)
    ]
    assert made.coherent == []


@pytest.mark.parametrize(("kernel", "flags"), [(MAINLINE, 0), (RFC, 8)], ids=str)
def test_only_what_can_be_mapped_has_slots_and_is_coherent_memory(
    owned: ExitStack, kernel: Kernel, flags: int
) -> None:
    """The rest is trapped: a guest that took it for memory would be lost."""
    made = memory(owned, kernel := fresh(kernel), areas=SPARSE)
    plugged(made, kernel)
    assert kernel.now == [(flags, BASE + area.base, area.size) for area in SPARSE]
    assert tuple(made.coherent) == SPARSE
    ranges = sorted((entry.base - BASE, entry.size, entry.slot) for entry in made.entries)
    assert ranges == [
        (0, 2 * MIB, 0),
        (2 * MIB, 2 * MIB, None),
        (4 * MIB, 2 * MIB, 1),
        (6 * MIB, 2 * MIB, None),
    ]


@pytest.mark.parametrize(
    ("cacheable", "stage2"), [(True, Stage2.FORCED_WRITE_BACK), (False, Stage2.NON_CACHEABLE)]
)
def test_the_proposals_kernel_tells_how_an_unknown_driver_maps(
    owned: ExitStack,
    cacheable: bool,  # noqa: FBT001  (a parameter of the test)
    stage2: Stage2,
) -> None:
    kernel = fresh(RFC, cacheable=cacheable)
    made = memory(owned, kernel, driver=VARIANT, areas=SPARSE)
    plugged(made, kernel)
    assert [entry.promise.stage2 for entry in made.entries if entry.slot is not None] == [
        stage2
    ] * 2


@pytest.mark.parametrize("driver", [NVGRACE, VARIANT])
def test_a_flag_that_makes_no_difference_is_not_the_proposals(
    owned: ExitStack, driver: str
) -> None:
    """With --uapi rfc on such a kernel, a promise would be made for Device memory."""
    kernel = fresh(STRAY)
    told = with_uapi(kernel.capability, "rfc")
    with pytest.raises(HostError, match="bit 3 and without"):
        memory(owned, kernel, driver=driver, capability=told)


@pytest.mark.parametrize("kernel", [LEGACY, STRAY, MAINLINE, MAINLINE_NOFWB, RFC], ids=str)
def test_an_unknown_drivers_device_memory_is_mapped_on_every_kernel(
    owned: ExitStack, kernel: Kernel, seen: list[stage1.Evidence]
) -> None:
    seen.append(DEVICE)
    made = memory(owned, kernel := fresh(kernel, cacheable=False), driver=VARIANT)
    assert kernel.slots == []  # it needed no question
    plugged(made, kernel)
    assert kernel.now == [(0, BASE, SIZE)]
    (entry,) = made.entries
    assert entry.promise.stage2 is Stage2.NON_CACHEABLE
    assert entry.attribute.because == DEVICE.because


@pytest.mark.parametrize("kernel", [LEGACY, STRAY], ids=str)
@pytest.mark.parametrize("driver", [VARIANT, "vfio-pci"])
def test_what_may_be_cacheable_is_never_shown_to_a_kernel_that_does_not_check(
    owned: ExitStack, kernel: Kernel, driver: str, seen: list[stage1.Evidence]
) -> None:
    """Even if the driver is known to map it as Device: what was measured goes first."""
    seen.append(NORMAL)
    kernel = fresh(kernel)
    with pytest.raises(HostError, match=NORMAL.because):
        memory(owned, kernel, driver=driver)
    assert kernel.slots == []


@pytest.mark.parametrize("driver", [VARIANT, "vfio-pci"])
def test_a_kernel_without_fwb_tells_by_its_refusal_that_normal_memory_is_cacheable(
    owned: ExitStack, driver: str, seen: list[stage1.Evidence]
) -> None:
    seen.append(NORMAL)
    with pytest.raises(HostError, match="FEAT_S2FWB"):
        memory(owned, fresh(MAINLINE_NOFWB), driver=driver)
    made = memory(owned, fresh(MAINLINE_NOFWB, cacheable=False), driver=driver)
    assert not made.can_be_cacheable
    assert "takes a slot of it" in made.attribute.because


@pytest.mark.parametrize(
    ("shown", "stage2"),
    [
        (MemoryType.FORCED_WRITE_BACK, Stage2.FORCED_WRITE_BACK),
        (MemoryType.NON_CACHEABLE, Stage2.NON_CACHEABLE),
        (MemoryType.UNDECIDABLE, Stage2.UNPROMISED),
    ],
)
def test_where_the_kernel_follows_the_vma_a_scratch_guest_tells_what_that_is(
    owned: ExitStack,
    seen: list[stage1.Evidence],
    monkeypatch: pytest.MonkeyPatch,
    shown: MemoryType,
    stage2: Stage2,
) -> None:
    seen.append(NORMAL)
    monkeypatch.setattr(stage1, "prove", lambda *_: Verdict(shown, ("seen",)))
    made = memory(owned, kernel := fresh(MAINLINE), driver=VARIANT)
    plugged(made, kernel)
    assert [entry.promise.stage2 for entry in made.entries] == [stage2]


def test_a_region_that_the_drivers_source_calls_cacheable_may_turn_out_to_be_a_plain_bar(
    owned: ExitStack, seen: list[stage1.Evidence]
) -> None:
    """As nvgrace-gpu's region 4 is where the firmware describes no memory of a GPU's."""
    seen.append(DEVICE)
    made = memory(owned, fresh(MAINLINE, cacheable=False))
    assert not made.can_be_cacheable
    assert "although nvgrace_gpu_vfio_pci maps region 4" in made.attribute.because


@pytest.mark.parametrize("kernel", [MAINLINE, RFC], ids=str)
def test_nothing_is_promised_on_the_drivers_name_alone(owned: ExitStack, kernel: Kernel) -> None:
    """Its mapping may be Normal and not cacheable: KVM's answer shows that it is not."""
    made = memory(owned, kernel := fresh(kernel, cacheable=False))
    plugged(made, kernel)
    assert made.coherent == []
    assert [entry.promise.stage2 for entry in made.entries] == [Stage2.NON_CACHEABLE]


def test_nothing_is_promised_where_nothing_was_seen(
    owned: ExitStack, seen: list[stage1.Evidence]
) -> None:
    """nvgrace-gpu answers BUS_ADRERR while the device is not ready after a reset."""
    seen.append(stage1.Evidence(stage1.Says.NOTHING, "BUS_ADRERR"))
    made = memory(owned, kernel := fresh(MAINLINE))
    plugged(made, kernel)
    assert made.coherent == []
    assert [entry.promise.stage2 for entry in made.entries] == [Stage2.UNPROMISED]
    with pytest.raises(HostError, match="cache=require"):
        memory(owned, fresh(MAINLINE), cache="require")


def test_no_guest_touches_what_may_be_registers(
    owned: ExitStack, seen: list[stage1.Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[object] = []

    def prove(*where: object) -> Verdict:
        touched.append(where)
        return GUESTS[True]

    monkeypatch.setattr(stage1, "prove", prove)
    nothing = stage1.Evidence(stage1.Says.NOTHING, "BUS_OBJERR")
    for loads in ([DEVICE], [nothing], [DEVICE, NORMAL], [nothing, DEVICE]):
        seen[:] = loads
        memory(owned, fresh(MAINLINE), driver=VARIANT)
        assert touched == []
    seen[:] = [NORMAL]
    memory(owned, fresh(MAINLINE), driver=VARIANT)
    assert touched


@pytest.mark.parametrize(("driver", "written"), [(NVGRACE, True), (VARIANT, False)])
def test_verify_writes_only_what_is_measured_to_be_memory(
    owned: ExitStack,
    seen: list[stage1.Evidence],
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    written: bool,  # noqa: FBT001  (a column)
) -> None:
    seen.append(NORMAL)
    given: list[bool] = []

    def prove(*_: object, contents: object, **__: object) -> Verdict:
        given.append(contents is not None)
        return GUESTS[True]

    made = memory(owned, fresh(MAINLINE), driver=driver)
    monkeypatch.setattr("vmm.passthrough.region_memory.prove", prove)
    made.verify()
    assert given == [written]


def test_what_cannot_be_mapped_can_only_be_trapped(owned: ExitStack) -> None:
    with pytest.raises(UserError, match="cannot be mapped"):
        memory(owned, fresh(MAINLINE), areas=())
    made = memory(owned, kernel := fresh(MAINLINE), areas=(), cache="forbid")
    plugged(made, kernel)
    assert [entry.promise.stage2 for entry in made.entries] == [Stage2.NO_SLOT]


def test_what_is_trapped_stays_unmapped(owned: ExitStack, seen: list[stage1.Evidence]) -> None:
    seen.append(NORMAL)
    made = memory(owned, fresh(MAINLINE), cache="forbid")
    assert made._mappings == []
    assert all(mapping.closed for mapping in made.region._mappings)


def test_a_refused_slot_is_explained(owned: ExitStack) -> None:
    made = memory(owned, kernel := fresh(RFC))
    kernel.bit3 = NO
    with pytest.raises(HostError, match=r"EINVAL: IPA \[0x100000000, .* -> new slot"):
        plugged(made, kernel)


def test_a_device_that_is_taken_back_stays_away_after_a_reset(owned: ExitStack) -> None:
    made = memory(owned, kernel := fresh(MAINLINE), areas=SPARSE)
    made.unplug(plugged(made, kernel), "taken")
    assert kernel.now == []
    plugged(made, kernel)
    assert kernel.now == []
    assert [(entry.slot, entry.promise.because) for entry in made.entries] == [(None, "taken")]
    assert made.suspects() == []


def test_a_device_that_is_taken_back_is_not_asked_any_more(owned: ExitStack) -> None:
    """Its descriptor's number may be another file's by then."""
    made = memory(owned, fresh(MAINLINE), areas=SPARSE)
    trapped = made.trap(cast("Any", SimpleNamespace(emit=lambda *_, **__: None)))
    assert trapped.read(0, 4) == 0
    made.unplug(None, "taken")
    assert trapped.read(0, 4) == 0xFFFF_FFFF


def test_a_silent_device_is_suspect_and_no_further_failure(owned: ExitStack) -> None:
    class Silent(SimpleNamespace):
        @property
        def memory_enabled(self) -> bool:
            raise VfioError("config", "pread", errno.EIO, {})

    made = memory(owned, kernel := fresh(MAINLINE), areas=SPARSE)
    plugged(made, kernel)
    silent: Any = Silent()
    made.device = silent
    assert [suspect.memory_enabled for suspect in made.suspects()] == [None, None]


@pytest.mark.parametrize(
    ("driver", "kept", "broken"),
    [
        (NVGRACE, {MemoryType.FORCED_WRITE_BACK}, {MemoryType.NON_CACHEABLE, MemoryType.DEVICE}),
        ("vfio-pci", {MemoryType.NON_CACHEABLE, MemoryType.DEVICE}, {MemoryType.FORCED_WRITE_BACK}),
    ],
)
def test_a_verdict_other_than_the_promise_is_an_error(
    owned: ExitStack,
    seen: list[stage1.Evidence],
    driver: str,
    kept: set[MemoryType],
    broken: set[MemoryType],
) -> None:
    seen.append(NORMAL if driver == NVGRACE else DEVICE)
    made = memory(owned, fresh(MAINLINE), driver=driver)
    for memory_type in kept:
        made.check(Verdict(memory_type, ("seen",)))
    for memory_type in {*broken, MemoryType.UNDECIDABLE}:
        with pytest.raises(HostError, match="--verify"):
            made.check(Verdict(memory_type, ("seen",)))


# --- where it does not fit ------------------------------------------------------------------


def narrow(bits: int) -> System:
    return cast("System", SimpleNamespace(ipa_bits=lambda: bits))


def test_more_memory_than_the_hosts_guests_can_have_is_refused_before_it_is_mapped() -> None:
    with pytest.raises(UserError, match=r"--memory: .* 36 bits of guest physical"):
        AddressSpace(MachineConfig(image=Path(), memory=1 << 36), narrow(36))


@pytest.mark.parametrize(
    ("base", "size", "word"),
    [
        (1 << 40, 2 * MIB, "lower address"),
        ((1 << 40) - MIB, 2 * MIB, "lower address"),
        (1 << 31, 1 << 40, "too large for this host"),
        (BASE + 0x200, 2 * MIB, "multiple of the host's page"),
        (0x4000_0000, 2 * MIB, "not above RAM"),
    ],
)
def test_a_region_that_does_not_fit_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, base: int, size: int, word: str
) -> None:
    region = SimpleNamespace(name=f"{BDF} region 4", base=base, size=size)
    monkeypatch.setattr("vmm.passthrough.region_memory.open_all", lambda *_: [region])
    config = MachineConfig(image=Path(), memory=MIB, bars=(BarConfig(BDF, 4),))
    monkeypatch.setattr(AddressSpace, "capability", None)
    with pytest.raises(UserError, match=f"--bar {BDF} region 4: .*{word}"):
        AddressSpace(config, narrow(40))


@pytest.mark.parametrize(
    ("holes", "left"),
    [
        ([], [(0, 0x8000)]),
        ([(0x2000, 0x410)], [(0, 0x2000), (0x3000, 0x5000)]),
        ([(0x1FF0, 0x20)], [(0, 0x1000), (0x3000, 0x5000)]),
        ([(0, 0x10)], [(0x1000, 0x7000)]),
        ([(0x7FF0, 0x10)], [(0, 0x7000)]),
        ([(0, 0x8000)], []),
        ([(0x2000, 16), (0x3000, 16)], [(0, 0x2000), (0x4000, 0x4000)]),
        ([(0x9000, 16)], [(0, 0x8000)]),
    ],
)
def test_pages_with_a_hole_in_them_are_left_out(
    holes: list[tuple[int, int]], left: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmap.PAGESIZE", 4096)
    areas = without([AddressRange(0, 0x8000)], [AddressRange(*hole) for hole in holes])
    assert [(area.base, area.size) for area in areas] == left
