"""Mute errnos, explained."""

from __future__ import annotations

import errno

import pytest
from hosts import HOSTS

from vmm.coherence import vma
from vmm.coherence.explain import Slot, refusal, run_causes, slot_causes
from vmm.coherence.ledger import Entry
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.coherence.vma import Vma
from vmm.kvm.vm import MemFlag
from vmm.memory import Backing

PFNMAP = Vma(
    0x7F00_0000_0000, 0x7F00_2000_0000, "rw-s", "anon_inode:[vfio-device]", frozenset({"pf"})
)
ANONYMOUS = Vma(0x7F00_0000_0000, 0x7F00_2000_0000, "rw-p", "", frozenset({"rd"}))


def slot(flags: int = 0, base: int = 0x1_0000_0000) -> Slot:
    return Slot(3, flags, base, 0x2000_0000, PFNMAP.start)


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
    host: str, asked: Slot, where: Vma, stage1: Stage1, word: str
) -> None:
    causes = slot_causes(errno.EINVAL, asked, where, stage1, HOSTS[host])
    assert word in causes[0].what
    assert causes[0].certain
    text = str(refusal(asked, where, errno.EINVAL, causes))
    assert "IPA [" in text
    assert "-> slot 3" in text
    assert "-> VMA" in text
    assert "\n" not in text


def test_einval_that_nothing_explains_is_ranked_not_claimed() -> None:
    causes = slot_causes(errno.EINVAL, slot(), PFNMAP, Stage1.UNKNOWN, HOSTS["mainline-nofwb"])
    assert not any(cause.certain for cause in causes)
    assert "probably" in str(refusal(slot(), PFNMAP, errno.EINVAL, causes))


def test_other_errnos_have_their_own_causes() -> None:
    for number in (errno.EEXIST, errno.EFAULT):
        (cause,) = slot_causes(number, slot(), PFNMAP, Stage1.UNCACHED, HOSTS["mainline"])
        assert cause.remedy


def entry(name: str, stage1: Stage1, stage2: Stage2) -> Entry:
    attribute, promise = Attribute(stage1, ""), Promise(stage2, "")
    return Entry(name, 0, 0x1000, Backing.DEVICE, attribute, promise, 1)


def test_a_failed_run_suspects_what_is_wrong_before_what_may_be() -> None:
    hazard = entry("hazard", Stage1.CACHEABLE, Stage2.UNPROMISED)
    gone = entry("gone", Stage1.UNCACHED, Stage2.NON_CACHEABLE)
    off = entry("off", Stage1.UNCACHED, Stage2.NON_CACHEABLE)
    fine = entry("fine", Stage1.CACHEABLE, Stage2.WRITE_BACK)
    found = run_causes(
        [hazard, gone, off, fine],
        lambda entry: None if entry is gone else PFNMAP,
        lambda entry: entry is not off,
    )
    assert [suspect.name for suspect, _ in found] == ["gone", "off", "hazard"]


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
    assert device.end == 0x7F0020000000
    assert not vdso.is_pfnmap
    assert vma.find(0x7F0000001000, [device, vdso]) is device
    assert vma.find(0x1000, [device, vdso]) is None


def test_our_own_mappings_are_found() -> None:
    held = bytearray(1 << 22)
    import ctypes  # noqa: PLC0415

    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    found = vma.find(address)
    assert found is not None
    assert not found.is_pfnmap
