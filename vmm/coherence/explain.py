"""What a mute errno means: IPA -> slot -> VMA -> ranked cause -> what to do.

KVM_SET_USER_MEMORY_REGION has one EINVAL for a dozen reasons, and KVM_RUN says EFAULT without
an address. What can be checked from here is checked; what remains is ranked.
Sources: virt/kvm/kvm_main.c (kvm_set_memory_region), arch/arm64/kvm/mmu.c
(kvm_arch_prepare_memory_region, user_mem_abort).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.coherence.capability import Generation, Support
from vmm.coherence.policy import Stage1, Stage2
from vmm.errors import HostError
from vmm.kvm.vm import MemFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.coherence.capability import Capability
    from vmm.coherence.ledger import Entry
    from vmm.coherence.vma import Vma


@dataclass(frozen=True)
class Cause:
    """One thing that explains an errno. *certain*: it was checked, not inferred."""

    what: str
    remedy: str
    certain: bool = False


@dataclass(frozen=True)
class Slot:
    """A memory slot as it was asked for, or is."""

    number: int
    flags: int
    base: int
    size: int
    host_address: int

    def __str__(self) -> str:
        flags = str(MemFlag(self.flags).name) if self.flags else "no flags"
        return f"IPA [{self.base:#x}, {self.base + self.size:#x}) -> slot {self.number} ({flags})"


def slot_causes(
    error: int, slot: Slot, vma: Vma | None, stage1: Stage1, capability: Capability
) -> list[Cause]:
    """Return why KVM refused *slot* with errno *error*, the likeliest first. Pure."""
    if error == errno.EEXIST:
        return [Cause("another slot holds part of the range", "place it elsewhere", certain=True)]
    if error == errno.EFAULT:
        return [
            Cause(
                f"the range ends beyond the VM's guest physical space of at most "
                f"{capability.ipa_bits} bits",
                "place it lower",
            )
        ]
    if error != errno.EINVAL:
        return []
    page = capability.page_size
    causes = []
    if any(value % page for value in (slot.base, slot.size, slot.host_address)):
        what = f"address or size is not a multiple of the host's page of {page >> 10} KiB"
        causes.append(Cause(what, "align them", certain=True))
    causes += _flag_causes(slot, capability)
    if vma is not None and vma.is_pfnmap:
        causes += _pfnmap_causes(slot, stage1, capability)
    causes.append(
        Cause(
            "a live slot's size, address or read-only flag was changed",
            "remove the slot first",
        )
    )
    return sorted(causes, key=lambda cause: not cause.certain)


def _flag_causes(slot: Slot, capability: Capability) -> list[Cause]:
    if not slot.flags & MemFlag.WRITE_BACK:
        return []
    if capability.generation is not Generation.RFC:
        what = f"this kernel ({capability.generation.value}) does not know the Write-Back flag"
        return [Cause(what, "leave the flag out (--uapi mainline)", certain=True)]
    if capability.support is not Support.SUPPORTED:
        what = "the host's CPUs cannot force Write-Back (FEAT_S2FWB and CTR_EL0.DIC)"
        return [Cause(what, "use a host with FWB", certain=True)]
    return []


def _pfnmap_causes(slot: Slot, stage1: Stage1, capability: Capability) -> list[Cause]:
    causes = []
    if slot.flags & MemFlag.LOG_DIRTY_PAGES:
        what = "dirty logging does not work on device memory"
        causes.append(Cause(what, "leave the flag out: it can't be pre-copied", certain=True))
    asked = bool(slot.flags & MemFlag.WRITE_BACK)
    if stage1 is not Stage1.UNCACHED and capability.support is not Support.SUPPORTED:
        causes.append(
            Cause(
                "the mapping is cacheable at host stage 1, and capability 243 "
                f"({capability.support.value}) says that this host cannot map it so at stage 2: "
                "it takes FEAT_S2FWB and CTR_EL0.DIC",
                "use a host with FWB, or cache=forbid to trap each access",
                certain=stage1 is Stage1.CACHEABLE,
            )
        )
    elif capability.generation is Generation.RFC and not asked and stage1 is not Stage1.UNCACHED:
        what = "the mapping is cacheable, and this kernel wants the Write-Back flag for that"
        certain = stage1 is Stage1.CACHEABLE
        causes.append(Cause(what, "set it (--uapi rfc, cache=auto)", certain=certain))
    if asked and stage1 is not Stage1.CACHEABLE:
        what = "the Write-Back flag was asked for, but the mapping is not cacheable"
        certain = stage1 is Stage1.UNCACHED
        causes.append(Cause(what, "leave it out (cache=auto)", certain=certain))
    return causes


def run_causes(
    entries: Iterable[Entry],
    vma_of: Callable[[Entry], Vma | None],
    memory_enabled: Callable[[Entry], bool],
) -> list[tuple[Entry, Cause]]:
    """Return why KVM_RUN may have failed with EFAULT, the likeliest first.

    KVM gives no address with it, so every range is suspect: those that something is wrong with
    first, then those where Device memory could meet an unaligned access.
    """
    found: list[tuple[Entry, Cause]] = []
    for entry in entries:
        if entry.slot is None:
            continue
        vma = vma_of(entry)
        if vma is None:
            what = "nothing is mapped behind it any more"
            found.append((entry, Cause(what, "was its device unplugged?", certain=True)))
        elif vma.is_pfnmap and not memory_enabled(entry):
            what = "its device's memory is switched off (command register, bit 1)"
            found.append((entry, Cause(what, "the guest's driver must enable it", certain=True)))
        elif entry.attribute.stage1 is Stage1.CACHEABLE and (
            entry.promise.stage2 is not Stage2.WRITE_BACK
        ):
            what = "it is cacheable, and stage 2 was not promised to be"
            found.append((entry, Cause(what, "map it with cache=require")))
        elif entry.promise.stage2 is Stage2.UNPROMISED:
            what = "an unaligned access met Device memory at stage 2"
            found.append((entry, Cause(what, "`pyvmm verify` tells its type")))
    return sorted(found, key=lambda pair: not pair[1].certain)


def refusal(slot: Slot, vma: Vma | None, error: int, causes: list[Cause]) -> HostError:
    """Return the one-line error for a refused slot."""
    chain = f"{slot} -> {vma or 'no VMA'}"
    name = errno.errorcode.get(error, str(error))
    if not causes:
        return HostError(f"KVM_SET_USER_MEMORY_REGION: {name}: {chain}")
    first = causes[0]
    certainty = "" if first.certain else "probably "
    return HostError(
        f"KVM_SET_USER_MEMORY_REGION: {name}: {chain}: {certainty}{first.what}", first.remedy
    )
