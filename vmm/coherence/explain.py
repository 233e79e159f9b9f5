"""Explain an errno of KVM: IPA -> slot -> VMA -> ranked cause -> remedy.

KVM_SET_USER_MEMORY_REGION has one EINVAL for a dozen reasons, and KVM_RUN fails with EFAULT without
an address. What can be checked from userspace is checked; the other causes are ranked.
Sources: virt/kvm/kvm_main.c (kvm_set_memory_region), arch/arm64/kvm/mmu.c
(kvm_arch_prepare_memory_region, user_mem_abort).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.address_range import AddressRange
from vmm.cause import Cause, FailedCall
from vmm.coherence.capability import FlagAnswer, Generation, Support
from vmm.coherence.policy import Stage1, Stage2
from vmm.errors import HostError
from vmm.kvm.causes import causes as kvm_causes
from vmm.kvm.causes.memory import FLAGS, PREPARE, SET
from vmm.kvm.vm import MemFlag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.coherence.capability import HostCapability
    from vmm.coherence.ledger import Entry
    from vmm.coherence.policy import Attribute
    from vmm.coherence.vma import Vma


_ABORT: Final = "user_mem_abort (arch/arm64/kvm/mmu.c)"
_GUEST_ABORT: Final = "kvm_handle_guest_abort (arch/arm64/kvm/mmu.c)"


@dataclass(frozen=True)
class RequestedSlot:
    """A memory slot as it was requested; *number* is None for a new slot."""

    number: int | None
    flags: int
    base: int
    size: int
    host_address: int

    def failed(self, error: int) -> FailedCall:
        """Return the call that KVM answered with errno *error*."""
        fields: dict[str, object] = {
            "flags": self.flags,
            "guest_phys_addr": self.base,
            "memory_size": self.size,
            "userspace_addr": self.host_address,
        }
        if self.number is not None:
            fields["slot"] = self.number
        return FailedCall("KVM_SET_USER_MEMORY_REGION", error, fields)

    def __str__(self) -> str:
        flags = str(MemFlag(self.flags).name) if self.flags else "no flags"
        which = "new slot" if self.number is None else f"slot {self.number}"
        return f"IPA {AddressRange(self.base, self.size)} -> {which} ({flags})"


def slot_causes(
    error: int,
    slot: RequestedSlot,
    vma: Vma | None,
    attribute: Attribute,
    capability: HostCapability,
) -> list[Cause]:
    """Return the causes of errno *error* for *slot*, the likeliest first. Changes nothing.

    *attribute* is the host's mapping's at stage 1; how it is known is quoted.
    """
    general = kvm_causes(slot.failed(error))
    if error != errno.EINVAL:
        return general
    causes = [cause for cause in general if cause.certain]
    causes += _flag_causes(slot, capability)
    if vma is not None and vma.is_pfnmap:
        causes += _pfnmap_causes(slot, attribute, capability)
    elif vma is not None and vma.is_mixedmap:
        causes += _mixedmap_causes(slot, capability)
    if slot.number is not None:
        what = "a live slot's size, address or a flag that cannot change was changed"
        causes.append(Cause(what, "remove the slot first", SET))
    if slot.flags:
        what = "this kernel does not know one of the flags"
        causes.append(Cause(what, "leave them out", FLAGS))
    return sorted(causes, key=lambda cause: not cause.certain)


def _flag_causes(slot: RequestedSlot, capability: HostCapability) -> list[Cause]:
    if not slot.flags & MemFlag.WRITE_BACK:
        return []
    if capability.support is Support.UNSUPPORTED:
        what = f"the host lacks {capability.cpu.lacking}"
        if capability.generation is Generation.RFC:
            return [Cause(what, "use a host with FWB", FLAGS, certain=True)]
    if (
        capability.generation is not Generation.RFC
        or capability.flag_answer is FlagAnswer.UNSUPPORTED
    ):
        what = f"this kernel ({capability.generation.value}) does not know the Write-Back flag"
        return [Cause(what, "leave the flag out (--uapi mainline)", FLAGS, certain=True)]
    return []


def _pfnmap_causes(
    slot: RequestedSlot, attribute: Attribute, capability: HostCapability
) -> list[Cause]:
    causes = []
    stage1 = attribute.stage1
    if slot.flags & MemFlag.LOG_DIRTY_PAGES:
        what = "dirty logging does not work on device memory"
        remedy = "leave the flag out: it can't be pre-copied"
        causes.append(Cause(what, remedy, PREPARE, certain=True))
    asked = bool(slot.flags & MemFlag.WRITE_BACK)
    sure = stage1 is Stage1.CACHEABLE
    believed = {
        Stage1.CACHEABLE: "the mapping is cacheable",
        Stage1.UNKNOWN: "the mapping may be cacheable",
        Stage1.UNCACHED: "the mapping may be cacheable after all",
    }[stage1]
    believed += f" at host stage 1 ({attribute.because})"
    if capability.support is not Support.SUPPORTED:
        known = capability.support is Support.UNSUPPORTED
        why = (
            f"the host lacks {capability.cpu.lacking}" if known else "243 is unknown to this kernel"
        )
        causes.append(
            Cause(
                f"{believed}, and no capability 243 says that this host can map it so at stage 2: "
                f"{why}",
                "use a host with FWB, or cache=forbid to trap each access",
                PREPARE,
                certain=sure and known,
            )
        )
    elif capability.generation is Generation.PER_VM:
        what = f"{believed}, and this kernel wants the VM to enable capability 243 for that"
        causes.append(Cause(what, "KVM_ENABLE_CAP, before the slot", PREPARE))
    elif not asked and capability.generation is Generation.RFC:
        what = f"{believed}, and this kernel wants the Write-Back flag for that"
        causes.append(Cause(what, "set it (--uapi rfc, cache=auto)", PREPARE, certain=sure))
    elif not asked and capability.flag_answer in (FlagAnswer.ACCEPTED, FlagAnswer.AMBIGUOUS):
        what = f"{believed}, and this kernel, which accepts flag bit 3, may want it for that"
        causes.append(Cause(what, "--uapi auto, or rfc if you know that it does", PREPARE))
    if asked and stage1 is not Stage1.CACHEABLE:
        what = (
            "the Write-Back flag was asked for, but the mapping is not cacheable "
            f"({attribute.because})"
        )
        certain = stage1 is Stage1.UNCACHED
        causes.append(Cause(what, "leave it out (cache=auto)", PREPARE, certain=certain))
    return causes


def _mixedmap_causes(slot: RequestedSlot, capability: HostCapability) -> list[Cause]:
    if capability.generation is not Generation.RFC or slot.flags & MemFlag.WRITE_BACK:
        return []
    what = "MIXEDMAP may hold device memory, and this kernel wants the Write-Back flag for that"
    return [Cause(what, "set it", PREPARE)]


@dataclass(frozen=True)
class Suspect:
    """A range that a failed KVM_RUN may have been about, as it is found right afterwards.

    vma             the mapping behind it now
    memory_enabled  whether its device decodes memory; None: the device does not answer
    """

    entry: Entry
    vma: Vma | None
    memory_enabled: bool | None


def run_causes(suspects: Iterable[Suspect]) -> list[tuple[Entry, Cause]]:
    """Return causes of KVM_RUN's EFAULT with their ranges, the likeliest first. Pure.

    KVM gives no address, so every range is a suspect: first those with a defect, then those where
    an unaligned access could meet Device memory.
    """
    found = [
        (suspect.entry, cause) for suspect in suspects if (cause := _run_cause(suspect)) is not None
    ]
    return sorted(found, key=lambda pair: not pair[1].certain)


def _run_cause(suspect: Suspect) -> Cause | None:
    if suspect.entry.slot is None:
        return None
    return _broken(suspect) or _misused(suspect.entry)


def _broken(suspect: Suspect) -> Cause | None:
    """Return what keeps KVM from faulting the range in."""
    if suspect.vma is None:
        what = "nothing is mapped behind it any more"
        return Cause(what, "was its device unplugged?", _ABORT, certain=True)
    if suspect.memory_enabled is None:
        return Cause("its device does not answer", "was it unplugged?", _ABORT, certain=True)
    if suspect.vma.is_pfnmap and not suspect.memory_enabled:
        what = "its device's memory is switched off (command register, bit 1)"
        remedy = "switch it on, through VFIO's configuration space"
        return Cause(what, remedy, _ABORT, certain=True)
    return None


def _misused(entry: Entry) -> Cause | None:
    """Return what the guest may have done that the range's memory type does not allow."""
    if entry.promise.stage2 is Stage2.FORCED_WRITE_BACK:
        return None
    if entry.attribute.stage1 is Stage1.CACHEABLE:
        return Cause("it is cacheable, and stage 2 was not promised to be", VERIFY, _ABORT)
    if entry.promise.stage2 is Stage2.UNPROMISED:
        return Cause("an unaligned access met Device memory at stage 2", VERIFY, _GUEST_ABORT)
    what = "an unaligned access or DC ZVA met Device memory (which it is before Linux 6.9)"
    return Cause(what, "the guest may use it as registers only", _GUEST_ABORT)


VERIFY: Final = "`pyvmm verify` tells its type"


def refusal(slot: RequestedSlot, vma: Vma | None, error: int, causes: list[Cause]) -> HostError:
    """Return the error for a refused slot, in one line."""
    chain = f"{slot} -> {vma or 'no VMA'}"
    name = errno.errorcode.get(error, str(error))
    if not causes:
        return HostError(f"KVM_SET_USER_MEMORY_REGION: {name}: {chain}")
    first, *others = causes
    certainty = "" if first.certain else "probably "
    less = f" (or: {'; '.join(cause.what for cause in others)})" if others else ""
    less = "" if first.certain else less
    return HostError(
        f"KVM_SET_USER_MEMORY_REGION: {name}: {chain}: {certainty}{first.what}{less}", first.remedy
    )
