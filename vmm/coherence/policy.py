"""Decide what to ask the kernel for, for one range, before any slot exists. Pure.

The rule: memory that is cacheable at host stage 1 never gets a non-cacheable mapping at stage 2,
because mismatched attributes lose coherency. There is no fallback: what cannot be mapped
Write-Back is refused or trapped.

    host stage 1   kernel              auto               require    forbid
    cacheable      legacy              refuse             refuse     trap
                   mainline            map, if 243        = auto     trap
                   rfc                 map with the flag  = auto     trap
    uncached       any                 map                refuse     map
    unknown        legacy              refuse             refuse     trap
                   mainline, no FWB    map (1)            refuse     trap
                   mainline            map                refuse     trap
                   rfc                 refuse             refuse     trap

(1) the kernel itself refuses the slot if the mapping turns out to be cacheable.

Unknown is what is left after `vmm.coherence.stage1` has measured the mapping and asked the kernel.
A kernel that does not know the capability is legacy here, whatever ``--uapi`` says: it maps
cacheable PFNMAP memory as Device, so it is given none that could be cacheable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from vmm.coherence.capability import NO_FWB, FlagAnswer, Generation, Support
from vmm.errors import UserError
from vmm.kvm.vm import MemFlag

if TYPE_CHECKING:
    from vmm.coherence.capability import HostCapability


class Cache(Enum):
    """``cache=``: what the user asks for, for a range."""

    AUTO = "auto"
    REQUIRE = "require"
    FORBID = "forbid"


class Stage1(Enum):
    """How the host maps a range at stage 1, as the driver that made the mapping chose."""

    CACHEABLE = "cacheable"
    UNCACHED = "uncached"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Attribute:
    """A stage-1 attribute, and how it is known.

    is_device       it is Device, not Normal, memory
    may_be_written  tests may write there, and put back what was there: a load or KVM's answer shows
                    memory, and no registers, and the driver, whose source says that it is
                    cacheable, reads and writes it so
    """

    stage1: Stage1
    because: str
    is_device: bool = False
    may_be_written: bool = False


@dataclass(frozen=True)
class Map:
    """Register a slot with these flags; *promise* says what stage 2 then gives."""

    flags: MemFlag
    promise: Promise


@dataclass(frozen=True)
class Trap:
    """Register no slot: each access exits, and goes through VFIO read and write."""

    because: str


@dataclass(frozen=True)
class Refuse:
    """Refuse to run: *because* names what is missing, *remedy* says what the user can do."""

    because: str
    remedy: str


Decision = Map | Trap | Refuse


class Stage2(Enum):
    """The memory type that stage 2 is expected to give a range.

    FORCED_WRITE_BACK  Write-Back, whatever the guest's stage 1 says (FEAT_S2FWB)
    GUEST_DECIDES      Write-Back as far as stage 2 goes: the guest's stage 1 can ask for less
    """

    FORCED_WRITE_BACK = "forced Write-Back"
    GUEST_DECIDES = "guest decides"
    NON_CACHEABLE = "not cacheable"
    NO_SLOT = "no mapping"
    UNPROMISED = "nothing promised"


@dataclass(frozen=True)
class Promise:
    """What stage 2 is expected to give a range, and why."""

    stage2: Stage2
    because: str


MANAGED: Final = Attribute(Stage1.CACHEABLE, "the kernel manages it, and maps it cacheable")
"""RAM, files, and all other memory that is not a device's."""

DAX: Final = Attribute(
    Stage1.CACHEABLE, "a DAX file: persistent memory, which the kernel manages, and maps cacheable"
)

NVGRACE: Final = "nvgrace_gpu_vfio_pci"
NVGRACE_REGIONS: Final = {
    2: Attribute(
        Stage1.UNCACHED,
        f"{NVGRACE} maps region 2 (resmem) Normal-NC (drivers/vfio/pci/nvgrace-gpu/main.c)",
    ),
    4: Attribute(
        Stage1.CACHEABLE,
        f"{NVGRACE} maps region 4 (usemem) cacheable (drivers/vfio/pci/nvgrace-gpu/main.c)",
    ),
}
UNCACHED_DRIVERS: Final = frozenset({"vfio_pci", NVGRACE})
"""Drivers whose other regions vfio-pci-core maps: pgprot_noncached."""


def region_attribute(driver: str, region: int) -> Attribute:
    """Return how *driver* maps *region* into userspace, as its source says.

    This is what is believed before `vmm.coherence.stage1` has measured it: nvgrace-gpu has no
    usemem on a machine whose firmware describes none, and its region 4 is then a plain BAR.
    """
    name = driver.replace("-", "_")
    if name == NVGRACE and region in NVGRACE_REGIONS:
        return NVGRACE_REGIONS[region]
    if name in UNCACHED_DRIVERS:
        because = f"{driver} maps region {region} uncached (drivers/vfio/pci/vfio_pci_core.c)"
        return Attribute(Stage1.UNCACHED, because, is_device=True)
    return Attribute(Stage1.UNKNOWN, f"pyvmm does not know how {driver} maps its regions")


def decide(attribute: Attribute, capability: HostCapability, cache: Cache) -> Decision:
    """Return the decision for a range of device memory, as the table above has it."""
    if cache is Cache.FORBID and attribute.stage1 is not Stage1.UNCACHED:
        return Trap(f"cache=forbid, and the host's mapping is {attribute.stage1.value}")
    match attribute.stage1:
        case Stage1.UNCACHED:
            return _decide_uncached(attribute, cache)
        case Stage1.CACHEABLE:
            return _decide_cacheable(capability)
        case Stage1.UNKNOWN:
            return _decide_unknown(attribute, capability, cache)


def _decide_uncached(attribute: Attribute, cache: Cache) -> Decision:
    if cache is Cache.REQUIRE:
        return Refuse(
            f"cache=require, but {attribute.because}", "use cache=auto, or another region"
        )
    because = "the host's is not; KVM maps such memory Normal-NC (before Linux 6.9: Device)"
    return Map(MemFlag(0), Promise(Stage2.NON_CACHEABLE, because))


def _decide_cacheable(capability: HostCapability) -> Decision:
    if capability.generation is Generation.VENDOR:
        because = "a scratch guest has proved it, as --uapi vendor asks"
        return Map(MemFlag(0), Promise(Stage2.FORCED_WRITE_BACK, because))
    if capability.support is Support.UNKNOWN:
        return _refuse_unknown_kernel("the host maps it cacheable", capability)
    if capability.support is not Support.SUPPORTED:
        return Refuse(
            f"KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED (243) is {capability.on_vm}: this host lacks "
            f"{capability.cpu.lacking}, so the kernel refuses cacheable device memory",
            "use a host that has it, or cache=forbid to trap each access",
        )
    if capability.generation is Generation.RFC:
        because = "the kernel accepted KVM_MEM_ENABLE_CACHEABLE_PFNMAP for the slot"
        return Map(MemFlag.WRITE_BACK, Promise(Stage2.FORCED_WRITE_BACK, because))
    because = "capability 243 is 1, and KVM follows the VMA, which is cacheable"
    return Map(MemFlag(0), Promise(Stage2.FORCED_WRITE_BACK, because))


def _decide_unknown(attribute: Attribute, capability: HostCapability, cache: Cache) -> Decision:
    if capability.generation is Generation.RFC and capability.support is Support.SUPPORTED:
        return Refuse(
            f"whether to set the Write-Back flag cannot be told: {attribute.because}",
            "use cache=forbid to trap each access",
        )
    if cache is Cache.REQUIRE:
        return Refuse(
            f"cache=require, but {attribute.because}, and this kernel does not tell",
            "use cache=auto and `pyvmm verify`",
        )
    if capability.support is Support.UNKNOWN:
        return _refuse_unknown_kernel(attribute.because, capability)
    because = "KVM follows the VMA, whose attributes nobody tells; `pyvmm verify` finds out"
    return Map(MemFlag(0), Promise(Stage2.UNPROMISED, because))


def _refuse_unknown_kernel(mapping: str, capability: HostCapability) -> Refuse:
    """Refuse what may be cacheable, and would be Device at stage 2 without an error."""
    if capability.on_system is not None:
        why, may = "does not know KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED (243)", "would"
        how = "use Linux 6.17 or later, or cache=forbid to trap each access"
    else:
        why, may = f"contradicts itself ({'; '.join(capability.evidence)})", "may"
        how = "use cache=forbid to trap each access"
    what = f"so it {may} map cacheable memory as Device at stage 2 without a word"
    return Refuse(f"{mapping}, and this kernel {why}, {what}", how)


def decide_ram(capability: HostCapability, *, write_back: bool) -> Decision:
    """Return the decision for memory that the kernel manages; *write_back*: set the flag."""
    if write_back:
        return _decide_ram_flag(capability)
    if capability.forces_write_back:
        because = f"KVM forces Write-Back on RAM: {capability.cpu.evidence[0]}"
        return Map(MemFlag(0), Promise(Stage2.FORCED_WRITE_BACK, because))
    if capability.cpu.fwb is False:
        because = f"without FEAT_S2FWB KVM cannot force Write-Back: {capability.cpu.evidence[0]}"
    else:
        because = "nothing says that this host has FEAT_S2FWB"
    return Map(MemFlag(0), Promise(Stage2.GUEST_DECIDES, because))


def _decide_ram_flag(capability: HostCapability) -> Decision:
    """Return the decision for ``--memory-write-back``: the flag's bit has to be proved.

    Capability 243 proves it, or a slot of cacheable PFNMAP memory (`vmm.coherence.udmabuf`). Other
    memory shows nothing: a kernel that has the proposal, and one that uses bit 3 for something
    else, both take such a slot with the flag and without.
    """
    leave_out = "leave the option out: RAM is forced Write-Back wherever the host has FWB"
    if capability.generation is not Generation.RFC:
        return Refuse(
            "--memory-write-back: this kernel has no memory-slot flag for Write-Back "
            f"(it is {capability.generation.value}: {capability.evidence[0]})",
            leave_out,
        )
    if capability.said:
        return Refuse(
            "--memory-write-back: only --uapi rfc says that memory-slot flag bit 3 means "
            "Write-Back: capability 243 does not claim it, and there is no udmabuf that shows it",
            leave_out,
        )
    if capability.support is not Support.SUPPORTED:
        return Refuse(
            "--memory-write-back: this host cannot force Write-Back at stage 2: it lacks "
            f"{capability.cpu.lacking} (capability 243 is {capability.on_vm})",
            "use a host with FWB",
        )
    because = "the kernel accepted KVM_MEM_ENABLE_CACHEABLE_PFNMAP for the slot"
    return Map(MemFlag.WRITE_BACK, Promise(Stage2.FORCED_WRITE_BACK, because))


def _check_vendor(capability: HostCapability) -> None:
    """Raise `UserError` where there can be no kernel that follows the VMA without a word."""
    leave_out = "leave the option out"
    if capability.support is not Support.UNKNOWN:
        raise UserError(
            f"--uapi vendor: this kernel knows capability 243: {capability.evidence[0]}", leave_out
        )
    if capability.cpu.fwb is not True:
        raise UserError(f"--uapi vendor: {NO_FWB}", leave_out)


def with_uapi(capability: HostCapability, uapi: str) -> HostCapability:
    """Return *capability* changed as ``--uapi`` says: auto, mainline, rfc or vendor.

    Evidence goes first: saying so does not make a kernel know the capability or a flag that it
    has refused. What is said counts for device memory only, and only after a test of it on a
    scratch VM (`vmm.passthrough.region_memory`): with rfc, that an accepted flag bit 3 is the
    proposal's; with vendor, that the region is Write-Back at stage 2. RAM gets neither a flag nor
    a promise for it (`decide_ram`). Raises `UserError` for what the kernel's answers rule out.
    """
    if uapi == "auto" or capability.generation is Generation(uapi):
        return capability
    generation, support = Generation(uapi), capability.support
    if generation is Generation.VENDOR:
        _check_vendor(capability)
    if support is Support.SUPPORTED:
        raise UserError(
            f"--uapi {uapi}: this kernel is {capability.generation.value}: "
            f"{capability.evidence[0]}",
            "leave the option out",
        )
    if generation is Generation.RFC:
        flag = capability.flag_answer
        if flag in (FlagAnswer.ACCEPTED, FlagAnswer.AMBIGUOUS):
            if capability.cpu.fwb is not True:
                raise UserError(f"--uapi rfc: {NO_FWB}", "leave the option out")
            support = Support.SUPPORTED
    said = f"--uapi {uapi} says so"
    evidence = (said, *capability.evidence)
    return replace(capability, generation=generation, support=support, evidence=evidence, said=True)
