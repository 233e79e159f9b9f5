"""Measuring how the host maps memory at stage 1; tests/lab/test_stage1.py does so for devices."""

from __future__ import annotations

import errno
import mmap
import platform
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from tests.coherence.hosts import HOSTS
from vmm.address_range import AddressRange
from vmm.coherence import stage1
from vmm.coherence.capability import HostCapability
from vmm.coherence.policy import NVGRACE, Attribute, Stage1, region_attribute, with_uapi
from vmm.coherence.stage1 import Area, Evidence, Says, Walks, compare, judge
from vmm.coherence.vma import Vma
from vmm.kvm.fd import KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.vm import MemFlag
from vmm.memory import Region

DEVICE = Evidence(Says.DEVICE, "a load faults")
NORMAL = Evidence(Says.NORMAL, "a load works")
NOTHING = Evidence(Says.NOTHING, "nobody knows")
TAKEN = Evidence(Says.UNCACHED, "the kernel takes it")
REFUSED = Evidence(Says.CACHEABLE, "the kernel refuses it")
VFIO, USEMEM, RESMEM, UNHEARD_OF = (
    region_attribute("vfio-pci", 0),
    region_attribute(NVGRACE, 4),
    region_attribute(NVGRACE, 2),
    region_attribute("some-vfio-pci", 0),
)


@pytest.mark.parametrize(
    ("prior", "evidence", "stage1"),
    [
        (UNHEARD_OF, [], Stage1.UNKNOWN),
        (UNHEARD_OF, [DEVICE], Stage1.UNCACHED),
        (UNHEARD_OF, [NORMAL], Stage1.UNKNOWN),
        (UNHEARD_OF, [NORMAL, TAKEN], Stage1.UNCACHED),
        (UNHEARD_OF, [NORMAL, REFUSED], Stage1.CACHEABLE),
        (UNHEARD_OF, [NOTHING], Stage1.UNKNOWN),
        (VFIO, [], Stage1.UNCACHED),
        (VFIO, [DEVICE], Stage1.UNCACHED),
        (VFIO, [NOTHING], Stage1.UNCACHED),
        (VFIO, [NORMAL], Stage1.UNKNOWN),
        (RESMEM, [NORMAL], Stage1.UNCACHED),
        (RESMEM, [NORMAL, REFUSED], Stage1.CACHEABLE),
        (USEMEM, [NORMAL], Stage1.CACHEABLE),
        (USEMEM, [DEVICE], Stage1.UNCACHED),
        (USEMEM, [NORMAL, TAKEN], Stage1.UNCACHED),
        (VFIO, [DEVICE, NORMAL], Stage1.UNKNOWN),
        (USEMEM, [DEVICE, REFUSED], Stage1.UNKNOWN),
        (UNHEARD_OF, [TAKEN, REFUSED], Stage1.UNKNOWN),
    ],
)
def test_what_is_measured_goes_before_what_the_drivers_source_says(
    prior: Attribute, evidence: list[Evidence], stage1: Stage1
) -> None:
    attribute = judge(prior, evidence)
    assert attribute.stage1 is stage1
    assert all(one.because in attribute.because for one in evidence)


@pytest.mark.parametrize(
    ("prior", "evidence"), [(VFIO, NORMAL), (USEMEM, DEVICE), (RESMEM, REFUSED)]
)
def test_a_contradiction_is_said(prior: Attribute, evidence: Evidence) -> None:
    assert f"although {prior.because}" in judge(prior, [evidence]).because


@pytest.mark.parametrize(
    ("walks", "own", "hint"),
    [
        (Walks(1000, 100), Walks(1000, 100), "hints at cacheable"),
        (Walks(2000, 1900), Walks(1000, 100), "hints at non-cacheable"),
        (Walks(1000, 300), Walks(1000, 100), "not clear"),
        (Walks(5000, 900), Walks(1000, 100), "not clear"),
        (Walks(100, 100), Walks(100, 100), "says nothing"),
        (Walks(1000, 100), Walks(110, 100), "says nothing"),
        (None, Walks(1000, 100), "says nothing"),
    ],
)
def test_timing_hints_where_it_tells_a_flushed_line_from_a_cached_one(
    walks: Walks | None, own: Walks | None, hint: str
) -> None:
    evidence = compare(walks, own)
    assert evidence.says is Says.NOTHING
    assert hint in evidence.because


# --- loads ----------------------------------------------------------------------------------------


@contextmanager
def mapped(file_size: int) -> Iterator[int]:
    """Yield the host address of a page of a file that then has *file_size* bytes."""
    page = mmap.PAGESIZE
    with tempfile.TemporaryFile() as file:
        file.truncate(page)
        with mmap.mmap(file.fileno(), page) as mapping:
            file.truncate(file_size)
            with memoryview(mapping) as view:
                yield Region(0, view).host_address


def test_an_unaligned_load_of_ordinary_memory_says_normal() -> None:
    with mapped(mmap.PAGESIZE) as address:
        assert stage1.load(address + 1).says is Says.NORMAL


def test_memory_that_is_not_there_says_nothing() -> None:
    """As a device's mapping whose memory is off: SIGBUS, but no alignment fault."""
    with mapped(0) as address:
        gone = stage1.load(address + 1)
        assert stage1.walk(address) is None
    assert gone.says is Says.NOTHING
    assert "BUS_ADRERR" in gone.because
    unmapped = stage1.load(16)
    assert unmapped.says is Says.NOTHING
    assert f"signal {int(signal.SIGSEGV)}" in unmapped.because


def test_a_fault_leaves_the_processs_own_handlers_alone() -> None:
    caught: list[int] = []
    former = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGBUS, signal.SIGCHLD)
    }
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # its children leave no status
    try:
        with mapped(0) as address:
            assert "BUS_ADRERR" in stage1.load(address + 1).because
        assert signal.getsignal(signal.SIGBUS) not in (signal.SIG_DFL, former[signal.SIGBUS])
        signal.raise_signal(signal.SIGBUS)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert caught == [signal.SIGBUS]


def test_a_load_leaves_no_process() -> None:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = children.read_text()
    with mapped(0) as address:
        stage1.load(address + 1)
        stage1.walk(address)
    assert children.read_text() == before


# --- questions to the kernel ----------------------------------------------------------------------


class Kernel:
    """The memory slots of a kernel: whether it takes them without the flag, and with it."""

    def __init__(
        self, *, plain: bool = False, flagged: bool = False, error: int = errno.EINVAL
    ) -> None:
        self._taken = {0: plain, int(MemFlag.WRITE_BACK): flagged}
        self._error = error

    def create_vm(self, _size: int) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_user_memory_region(self, _slot: int, flags: int, *_where: int) -> None:
        if not self._taken[flags]:
            raise KvmError(Ioctl.KVM_SET_USER_MEMORY_REGION, self._error, {})


AREA = Area(0, mmap.PAGESIZE, 0x1000)


def asked(kernel: Kernel, capability: HostCapability) -> list[Says]:
    system: Any = kernel
    return [one.says for one in stage1.ask(system, [AREA], capability, by_guest=True)]


@pytest.fixture
def _pfnmap(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Vma(AddressRange(0, 1 << 48), "rw-s", "/dev/vfio/devices/vfio0", frozenset({"pf"}))
    monkeypatch.setattr("vmm.coherence.vma.find", lambda _address: device)


CLAIMS_SOMETHING_ELSE = replace(HOSTS["mainline-nofwb"], on_vm=4)


@pytest.mark.usefixtures("_pfnmap")
@pytest.mark.parametrize(
    ("capability", "plain", "flagged", "says"),
    [
        (HOSTS["mainline-nofwb"], True, False, [Says.UNCACHED]),
        (HOSTS["mainline-nofwb"], False, False, [Says.CACHEABLE]),
        (HOSTS["mainline-nodic"], False, False, [Says.CACHEABLE]),
        (HOSTS["rfc"], True, False, [Says.UNCACHED]),
        (HOSTS["rfc"], False, True, [Says.CACHEABLE]),
        (HOSTS["rfc"], True, True, [Says.NOTHING]),
        (HOSTS["rfc"], False, False, [Says.NOTHING]),
        (HOSTS["legacy"], True, False, []),
        (HOSTS["stray-flag"], True, True, []),
        (CLAIMS_SOMETHING_ELSE, True, False, []),
        (with_uapi(HOSTS["legacy"], "mainline"), True, False, []),
        (with_uapi(HOSTS["stray-flag"], "rfc"), True, True, [Says.NOTHING]),
        (with_uapi(HOSTS["stray-flag"], "rfc"), True, False, [Says.NOTHING]),
        (with_uapi(HOSTS["stray-flag"], "rfc"), False, True, [Says.CACHEABLE]),
    ],
)
def test_a_kernel_tells_by_the_slots_it_takes_only_if_it_checks_them(
    capability: HostCapability,
    plain: bool,  # noqa: FBT001  (a column)
    flagged: bool,  # noqa: FBT001
    says: list[Says],
) -> None:
    assert asked(Kernel(plain=plain, flagged=flagged), capability) == says


@pytest.mark.usefixtures("_pfnmap")
def test_a_slot_that_fails_for_another_reason_is_no_answer() -> None:
    with pytest.raises(KvmError, match="out of memory"):
        asked(Kernel(error=errno.ENOMEM), HOSTS["mainline-nofwb"])


def test_only_mappings_of_page_frames_are_a_question_for_the_kernel() -> None:
    """KVM takes a slot of any other memory, so an answer would say nothing."""
    system: Any = None  # it is not asked
    with mapped(mmap.PAGESIZE) as address:
        area = Area(0, mmap.PAGESIZE, address)
        for host in HOSTS.values():
            assert stage1.ask(system, [area], host, by_guest=True) == []


# --- what to make of them -------------------------------------------------------------------------


def test_where_ordinary_memory_faults_too_an_alignment_fault_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under a kernel that checks the alignment of all accesses."""
    monkeypatch.setattr(stage1, "load", lambda _address: DEVICE)
    (evidence,) = stage1.weigh([0x1000], 0x2000)
    assert evidence.says is Says.NOTHING


def test_each_page_counts_and_only_normal_memory_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(
        stage1, "load", lambda address: DEVICE if address >> 12 in (3, 4) else NORMAL
    )
    monkeypatch.setattr(stage1, "walk", timed.append)
    assert stage1.weigh([0x3000, 0x4000], 0x1000) == [DEVICE]
    assert stage1.weigh([0x2000, 0x3000], 0x1000) == [NORMAL, DEVICE]
    assert timed == []
    assert stage1.weigh([0x2000, 0x5000], 0x1000)[0] == NORMAL
    assert timed == [0x2000, 0x1000]


def test_a_machine_with_caches_shows_them() -> None:
    """Of the machine that runs the test: arm64 or x86-64; an emulated one shows none."""
    with mapped(mmap.PAGESIZE) as address:
        walks = stage1.walk(address)
    assert walks is not None
    assert walks.cold > 0
    assert walks.warm > 0
    if platform.machine() == "x86_64":
        assert walks.cold >= stage1.CLEAR * walks.warm
