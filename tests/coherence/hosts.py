"""Hosts as `Capability.probe` finds them, by name: for tests of what follows from them."""

from __future__ import annotations

from vmm.coherence.capability import Capability, FlagAnswer, judge


def host(on_system: int | None, on_vm: int | None, bit3: FlagAnswer) -> Capability:
    support, generation, evidence = judge(on_system, on_vm, bit3)
    return Capability(support, generation, on_system, on_vm, 4096, 40, True, True, {}, evidence)  # noqa: FBT003


NO, YES = FlagAnswer.UNSUPPORTED, FlagAnswer.ACCEPTED
HOSTS = {
    "legacy": host(0, 0, NO),
    "mainline": host(None, 1, NO),
    "mainline-nofwb": host(None, 0, NO),
    "rfc": host(None, 2, YES),
    "rfc-nofwb": host(None, 0, NO),
    "stray-flag": host(0, 0, YES),
}
