"""Hosts by name, as `HostCapability.probe` finds them."""

from __future__ import annotations

from vmm.coherence.capability import FlagAnswer, Generation, HostCapability, judge


def host(on_system: int | None, on_vm: int | None, bit3: FlagAnswer) -> HostCapability:
    support, generation, evidence = judge(on_system, on_vm, bit3)
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
        idc=True,
        dic=True,
        flags=flags,
        evidence=evidence,
    )


NO, YES = FlagAnswer.UNSUPPORTED, FlagAnswer.ACCEPTED
HOSTS = {
    "legacy": host(0, 0, NO),
    "mainline": host(None, 1, NO),
    "mainline-nofwb": host(None, 0, NO),
    "rfc": host(None, 2, YES),
    "rfc-nofwb": host(None, 0, NO),
    "stray-flag": host(0, 0, YES),
}
