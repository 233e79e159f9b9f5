"""Errnos of KVM, explained."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import replace
from typing import Any

import pytest

from tests.coherence.hosts import HOSTS
from vmm.address_range import AddressRange
from vmm.coherence import vma
from vmm.coherence.capability import Generation
from vmm.coherence.explain import RequestedSlot, Suspect, refusal, run_causes, slot_causes
from vmm.coherence.ledger import Entry
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.coherence.vma import Vma
from vmm.kvm.causes import causes as kvm_causes
from vmm.kvm.vm import MemFlag
from vmm.memory import Backing

ADDRESSES = AddressRange(0x7F00_0000_0000, 0x2000_0000)
PFNMAP = Vma(ADDRESSES, "rw-s", "anon_inode:[vfio-device]", frozenset({"pf"}))
MIXED = Vma(ADDRESSES, "rw-s", "socket:[7]", frozenset({"mm"}))
ANONYMOUS = Vma(ADDRESSES, "rw-p", "", frozenset({"rd"}))


def slot(flags: int = 0, base: int = 0x1_0000_0000) -> RequestedSlot:
    return RequestedSlot(3, flags, base, 0x2000_0000, PFNMAP.addresses.base)


def known(stage1: Stage1) -> Attribute:
    return Attribute(stage1, "a load showed it")


@pytest.mark.parametrize(
    ("host", "asked", "where", "stage1", "word"),
    [
        ("mainline-nofwb", slot(), PFNMAP, Stage1.CACHEABLE, "FEAT_S2FWB"),
        ("rfc", slot(), PFNMAP, Stage1.CACHEABLE, "wants the Write-Back flag"),
        ("rfc", slot(MemFlag.WRITE_BACK), PFNMAP, Stage1.UNCACHED, "not cacheable"),
        ("mainline", slot(MemFlag.WRITE_BACK), ANONYMOUS, Stage1.CACHEABLE, "does not know"),
        ("legacy", slot(MemFlag.WRITE_BACK), ANONYMOUS, Stage1.CACHEABLE, "does not know"),
        ("mainline", slot(MemFlag.LOG_DIRTY_PAGES), PFNMAP, Stage1.UNCACHED, "dirty logging"),
        ("mainline", slot(base=0x1_0000_0200), ANONYMOUS, Stage1.CACHEABLE, "multiple of the host"),
    ],
)
def test_einval_has_a_first_cause(
    host: str, asked: RequestedSlot, where: Vma, stage1: Stage1, word: str
) -> None:
    causes = slot_causes(errno.EINVAL, asked, where, known(stage1), HOSTS[host])
    assert word in causes[0].what
    assert causes[0].certain
    text = str(refusal(asked, where, errno.EINVAL, causes))
    assert "IPA [" in text
    assert "-> slot 3" in text
    assert "-> VMA" in text
    assert "\n" not in text


def test_mixedmap_is_suspected_only_where_it_has_to_ask() -> None:
    for host, flags, suspected in (
        ("rfc", MemFlag(0), True),
        ("rfc", MemFlag.WRITE_BACK, False),
        ("mainline", MemFlag(0), False),
    ):
        new = RequestedSlot(None, int(flags), 0x1_0000_0000, 0x2000, ADDRESSES.base)
        causes = slot_causes(errno.EINVAL, new, MIXED, known(Stage1.CACHEABLE), HOSTS[host])
        assert any("MIXEDMAP" in cause.what for cause in causes) is suspected
    assert "(MIXEDMAP)" in str(MIXED)


def test_a_vm_that_did_not_ask_is_suspected_where_each_has_to() -> None:
    host = replace(HOSTS["mainline"], generation=Generation.PER_VM)
    new = RequestedSlot(None, 0, 0x1_0000_0000, 0x2000, ADDRESSES.base)
    (cause, *_) = slot_causes(errno.EINVAL, new, PFNMAP, known(Stage1.CACHEABLE), host)
    assert "enable capability 243" in cause.what


def test_einval_that_nothing_explains_is_ranked_not_claimed() -> None:
    """A new slot is not suspected of a change that only a live slot can refuse."""
    new = RequestedSlot(None, 0, 0x1_0000_0000, 0x2000_0000, PFNMAP.addresses.base)
    for stage1 in (Stage1.UNKNOWN, Stage1.UNCACHED):
        causes = slot_causes(errno.EINVAL, new, PFNMAP, known(stage1), HOSTS["mainline-nofwb"])
        assert not any(cause.certain for cause in causes)
        text = str(refusal(new, PFNMAP, errno.EINVAL, causes))
        assert "-> new slot" in text
        assert "probably the" in text
        assert "live slot" not in text


def test_how_stage_1_is_known_is_said_with_what_is_concluded_from_it() -> None:
    for host, flags, stage1 in (
        ("mainline-nofwb", MemFlag(0), Stage1.UNCACHED),
        ("rfc", MemFlag(0), Stage1.CACHEABLE),
        ("rfc", MemFlag.WRITE_BACK, Stage1.UNCACHED),
    ):
        first, *_ = slot_causes(errno.EINVAL, slot(flags), PFNMAP, known(stage1), HOSTS[host])
        assert "a load showed it" in first.what


def test_who_claims_a_flag_is_told_that_the_kernel_refuses_it() -> None:
    """Evidence about the kernel goes before guesses about the slot."""
    claimed = replace(HOSTS["mainline"], generation=Generation.RFC)
    asked = slot(MemFlag.WRITE_BACK)
    first, *_ = slot_causes(errno.EINVAL, asked, PFNMAP, known(Stage1.CACHEABLE), claimed)
    assert first.certain
    assert "does not know the Write-Back flag" in first.what


def test_who_denies_a_flag_is_told_that_the_kernel_may_want_it() -> None:
    denied = replace(HOSTS["rfc"], generation=Generation.MAINLINE)
    first, *_ = slot_causes(errno.EINVAL, slot(), PFNMAP, known(Stage1.CACHEABLE), denied)
    assert "may want" in first.what
    assert not first.certain


@pytest.mark.parametrize(
    "number",
    [
        *(errno.EEXIST, errno.EFAULT, errno.ENOMEM, errno.ENOSPC),
        *(errno.EIO, errno.EPERM, errno.EBADF, errno.ENOTTY),
    ],
    ids=errno.errorcode.get,
)
def test_other_errnos_have_their_own_causes(number: int) -> None:
    """The errnos of KVM_SET_USER_MEMORY_REGION, from virt/kvm/kvm_main.c and arch/arm64/kvm."""
    causes = slot_causes(number, slot(), PFNMAP, known(Stage1.UNCACHED), HOSTS["mainline"])
    assert [cause.what for cause in causes] == [
        cause.what for cause in kvm_causes(slot().failed(number))
    ]
    assert causes


def test_a_slot_has_a_largest_size() -> None:
    huge = RequestedSlot(None, 0, 0, 1 << 43, PFNMAP.addresses.base)
    first, *_ = slot_causes(errno.EINVAL, huge, PFNMAP, known(Stage1.CACHEABLE), HOSTS["mainline"])
    assert first.certain
    assert "fewer than 2^31 pages" in first.what


def suspect(name: str, stage1: Stage1, stage2: Stage2, **found: Any) -> Suspect:
    attribute, promise = Attribute(stage1, ""), Promise(stage2, "")
    entry = Entry(name, 0, 0x1000, Backing.DEVICE, attribute, promise, found.pop("slot", 1))
    return Suspect(entry, found.get("vma", PFNMAP), found.get("memory_enabled", True))


def test_a_failed_run_suspects_what_is_wrong_before_what_may_be() -> None:
    found = run_causes(
        [
            suspect("hazard", Stage1.CACHEABLE, Stage2.UNPROMISED),
            suspect("registers", Stage1.UNCACHED, Stage2.NON_CACHEABLE),
            suspect("gone", Stage1.UNCACHED, Stage2.NON_CACHEABLE, vma=None),
            suspect("off", Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK, memory_enabled=False),
            suspect("silent", Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK, memory_enabled=None),
            suspect("fine", Stage1.CACHEABLE, Stage2.FORCED_WRITE_BACK),
            suspect("trapped", Stage1.CACHEABLE, Stage2.NO_SLOT, slot=None, vma=None),
        ]
    )
    names = [(entry.name, cause.certain) for entry, cause in found]
    assert names == [
        *(("gone", True), ("off", True), ("silent", True)),
        *(("hazard", False), ("registers", False)),
    ]


SMAPS = """\
7f0000000000-7f0020000000 rw-s 40000000000 00:0f 1058      anon_inode:[vfio-device]
Size:             524288 kB
KernelPageSize:        4 kB
VmFlags: rd wr sh mr mw me ms io pf de dd
7ffd0000-7ffd1000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de
"""


def test_smaps_tells_which_mappings_are_pfnmap() -> None:
    device, vdso = vma.parse(SMAPS.splitlines())
    assert device.is_pfnmap
    assert device.addresses.end == 0x7F0020000000
    assert not vdso.is_pfnmap
    assert vma.find(0x7F0000001000, [device, vdso]) is device
    assert vma.find(0x1000, [device, vdso]) is None


def test_our_own_mappings_are_found() -> None:
    held = bytearray(1 << 22)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    found = vma.find(address)
    assert found is not None
    assert not found.is_pfnmap
