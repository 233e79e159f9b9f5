"""Hosts by name, as `HostCapability.probe` finds them."""

from __future__ import annotations

from vmm.coherence.capability import FlagAnswer, Generation, HostCapability, judge
from vmm.coherence.cpu import CacheFeatures
from vmm.coherence.udmabuf import SlotAnswers


def features(*, fwb: bool = True, dic: bool = True) -> CacheFeatures:
    """Return what a vCPU's registers tell."""
    return CacheFeatures.judge(int(fwb) << 40, int(dic) << 29 | 1 << 28, 0)


def host(
    on_system: int | None,
    on_vm: int | None,
    bit3: FlagAnswer,
    cpu: CacheFeatures,
    sample: SlotAnswers | None = None,
) -> HostCapability:
    support, generation, evidence = judge(on_system, on_vm, bit3, cpu, sample)
    claimed = bit3 is not FlagAnswer.ACCEPTED or generation is Generation.RFC
    flags = {
        "WRITE_BACK": {
            "KVM_SET_USER_MEMORY_REGION": bit3 if claimed else FlagAnswer.AMBIGUOUS,
        }
    }
    return HostCapability(
        support=support,
        generation=generation,
        on_system=on_system,
        on_vm=on_vm,
        page_size=4096,
        ipa_bits=40,
        cpu=cpu,
        flags=flags,
        evidence=evidence,
    )


NO, YES = FlagAnswer.UNSUPPORTED, FlagAnswer.ACCEPTED
HOSTS = {
    "legacy": host(0, 0, NO, features()),
    "legacy-nofwb": host(0, 0, NO, features(fwb=False, dic=False)),
    "mainline": host(None, 1, NO, features()),
    "mainline-nofwb": host(None, 0, NO, features(fwb=False, dic=False)),
    "mainline-nodic": host(None, 0, NO, features(dic=False)),
    "rfc": host(None, 2, YES, features()),
    "rfc-nofwb": host(None, 0, NO, features(fwb=False, dic=False)),
    "contradicted": host(None, 1, NO, features(), SlotAnswers(plain=False, flagged=False)),
    "unknown-answer": host(None, 4, NO, features()),
    "stray-flag": host(0, 0, YES, features()),
    "stray-flag-nofwb": host(0, 0, YES, features(fwb=False)),
}
