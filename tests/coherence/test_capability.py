"""A kernel's generation, by its answers."""

from __future__ import annotations

import json
import os

import pytest

from tests.coherence.hosts import HOSTS, NO, YES, features
from vmm.coherence.capability import FlagAnswer, Generation, HostCapability, Support, judge
from vmm.coherence.cpu import CacheFeatures
from vmm.coherence.udmabuf import SlotAnswers
from vmm.kvm.system import DEVICE, System


@pytest.mark.parametrize(
    ("name", "support", "generation"),
    [
        ("legacy", Support.UNKNOWN, Generation.LEGACY),
        ("mainline", Support.SUPPORTED, Generation.MAINLINE),
        ("mainline-nofwb", Support.UNSUPPORTED, Generation.MAINLINE),
        ("rfc", Support.SUPPORTED, Generation.RFC),
        ("stray-flag", Support.UNKNOWN, Generation.LEGACY),
    ],
)
def test_generations_are_told_by_evidence(
    name: str, support: Support, generation: Generation
) -> None:
    assert (HOSTS[name].support, HOSTS[name].generation) == (support, generation)
    assert HOSTS[name].evidence


def test_zero_on_a_vm_means_two_things() -> None:
    """A kernel that does not know the capability differs from hardware without FWB."""
    assert judge(0, 0, NO, features())[0] is Support.UNKNOWN
    assert judge(None, 0, NO, features(fwb=False))[0] is Support.UNSUPPORTED


@pytest.mark.parametrize(
    ("cpu", "lacking"),
    [
        (features(fwb=False), "lacks FEAT_S2FWB"),
        (features(dic=False), "lacks CTR_EL0.DIC"),
        (features(fwb=False, dic=False), "lacks FEAT_S2FWB and CTR_EL0.DIC"),
    ],
)
def test_a_zero_is_told_apart_by_what_the_cpu_lacks(cpu: CacheFeatures, lacking: str) -> None:
    _, _, evidence = judge(None, 0, NO, cpu)
    assert evidence[1].endswith(lacking)


def test_a_claim_on_a_cpu_without_fwb_means_something_else() -> None:
    for answer in (1, 2):
        support, generation, evidence = judge(None, answer, YES, features(fwb=False))
        assert (support, generation) == (Support.UNKNOWN, Generation.LEGACY)
        assert "FEAT_S2FWB" in evidence[0]


def test_registers_tell_fwb_apart_from_dic() -> None:
    """Bits of the registers, as the Arm ARM numbers them; and what KVM does not show."""
    both = CacheFeatures.judge(0x0000_0100_0000_0000, 0x2000_0000, 0)
    assert (both.fwb, both.dic, both.idc) == (True, True, False)
    neither = CacheFeatures.judge(0x0000_F0FF_FFFF_FFFF & ~(0xF << 40), 0x1000_0000, 0x2000_0000)
    assert (neither.fwb, neither.dic, neither.idc) == (False, False, True)
    unseen = CacheFeatures.judge(None, None, 0x2000_0000)
    assert (unseen.fwb, unseen.dic) == (None, True)
    assert "this process" in unseen.evidence[-1]


def test_an_accepted_bit_3_alone_proves_nothing() -> None:
    support, generation, evidence = judge(0, 0, YES, features())
    assert (support, generation) == (Support.UNKNOWN, Generation.LEGACY)
    assert "means something else" in evidence[-1]
    assert judge(None, 1, YES, features())[1] is Generation.MAINLINE


def test_a_yes_counts_only_where_the_system_descriptor_says_einval() -> None:
    """Capability numbers collide out of tree; a legacy kernel must never pass for mainline."""
    for answer in (1, 2, 3):
        support, generation, evidence = judge(answer, answer, YES, features())
        assert (support, generation) == (Support.UNKNOWN, Generation.LEGACY)
        assert "/dev/kvm" in evidence[0]
        assert judge(0, answer, NO, features())[0] is Support.UNKNOWN


UNKNOWN = (Support.UNKNOWN, Generation.LEGACY)


def test_an_answer_that_nobody_knows_makes_the_kernel_unknown() -> None:
    *found, evidence = judge(None, 4, NO, features())
    assert tuple(found) == UNKNOWN
    assert "4" in evidence[1]


def test_a_capability_without_its_flag_makes_the_kernel_unknown() -> None:
    assert judge(None, 2, NO, features())[:2] == UNKNOWN


@pytest.mark.parametrize("answer", [1, 2])
def test_a_claim_where_fwb_cannot_be_told_is_none(answer: int) -> None:
    unseen = CacheFeatures.judge(None, None, 0x2000_0000)
    assert judge(None, answer, YES, unseen)[:2] == UNKNOWN


PLAIN, PROPOSED, REFUSED = (
    SlotAnswers(*pair) for pair in ((True, False), (False, True), (False, False))
)
BOTH = SlotAnswers(plain=True, flagged=True)


def test_the_flag_is_recognized_by_what_it_does_without_a_capability() -> None:
    """The series as it was posted: 243 is unknown, or another capability's number."""
    for on_system, on_vm in ((0, 0), (1, 1), (0, 2)):
        support, generation, evidence = judge(on_system, on_vm, YES, features(), PROPOSED)
        assert (support, generation) == (Support.SUPPORTED, Generation.RFC)
        assert "udmabuf" in evidence[-1]


@pytest.mark.parametrize(("on_system", "on_vm"), [(0, 0), (1, 1), (None, 0), (None, 1), (None, 2)])
@pytest.mark.parametrize("mmfr2", [0, None], ids=["no FWB", "not told"])
def test_no_slot_proves_the_flag_on_a_cpu_without_fwb(
    on_system: int | None, on_vm: int, mmfr2: int | None
) -> None:
    cpu = CacheFeatures.judge(mmfr2, 1 << 29, 0)
    *found, evidence = judge(on_system, on_vm, YES, cpu, PROPOSED)
    assert tuple(found) == UNKNOWN
    assert "FEAT_S2FWB" in "; ".join(evidence)


@pytest.mark.parametrize("sample", [PLAIN, REFUSED, BOTH])
def test_bit_3_that_does_something_else_stays_unknown(sample: SlotAnswers) -> None:
    assert judge(0, 0, YES, features(), sample)[1] is Generation.LEGACY


def test_a_flag_that_ordinary_memory_does_not_take_is_none() -> None:
    assert judge(0, 0, NO, features(), PROPOSED)[1] is Generation.LEGACY


@pytest.mark.parametrize(
    ("on_vm", "bit3", "sample", "support", "generation"),
    [
        (1, NO, PLAIN, Support.SUPPORTED, Generation.MAINLINE),
        (1, NO, REFUSED, *UNKNOWN),
        (1, YES, PROPOSED, *UNKNOWN),
        (4, YES, PROPOSED, *UNKNOWN),
        (2, YES, PROPOSED, Support.SUPPORTED, Generation.RFC),
        (2, YES, PLAIN, *UNKNOWN),
        (2, YES, BOTH, *UNKNOWN),
        (2, YES, REFUSED, *UNKNOWN),
    ],
)
def test_a_claim_that_slots_contradict_makes_the_kernel_unknown(
    on_vm: int, bit3: FlagAnswer, sample: SlotAnswers, support: Support, generation: Generation
) -> None:
    assert judge(None, on_vm, bit3, features(), sample)[:2] == (support, generation)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (REFUSED, (Support.UNSUPPORTED, Generation.MAINLINE)),
        (PLAIN, UNKNOWN),
        (PROPOSED, UNKNOWN),
        (BOTH, UNKNOWN),
    ],
)
def test_a_zero_that_slots_contradict_makes_the_kernel_unknown(
    sample: SlotAnswers, expected: tuple[Support, Generation]
) -> None:
    """Mainline answers 0 where it refuses cacheable PFNMAP memory; so a taken slot belies it."""
    assert judge(None, 0, NO, features(dic=False), sample)[:2] == expected


def test_a_capability_that_each_vm_has_to_enable_is_recognized() -> None:
    support, generation, evidence = judge(None, 1, NO, features(), PLAIN, per_vm=True)
    assert (support, generation) == (Support.SUPPORTED, Generation.PER_VM)
    assert any("KVM_ENABLE_CAP" in sentence for sentence in evidence)
    assert judge(None, 1, NO, features(), REFUSED, per_vm=True)[:2] == UNKNOWN


@pytest.mark.kvm
def test_this_machines_kernel_can_be_probed() -> None:
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"no {DEVICE} that we may use")
    with System.open() as system:
        capability = HostCapability.probe(system)
    assert capability.flags["READONLY"]["KVM_SET_USER_MEMORY_REGION"] is FlagAnswer.ACCEPTED
    assert capability.flags["WRITE_BACK"]["KVM_SET_USER_MEMORY_REGION"] is not FlagAnswer.ACCEPTED
    assert json.loads(json.dumps(capability.as_json()))["generation"] == "legacy"
    assert any("generation" in line for line in capability.lines())
