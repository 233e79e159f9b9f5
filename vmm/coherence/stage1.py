"""How the host maps device memory at stage 1, measured on pyvmm's own mapping of it.

The driver that made the mapping chose its attributes, and no interface tells which. Looked at, and
of no help: /proc/PID/smaps has VM_PFNMAP (``pf``) and VM_IO, and not the protection bits;
/sys/kernel/debug/kernel_page_tables shows kernel addresses only; the list of memory types in
/sys/kernel/debug/x86 is x86's; VFIO_DEVICE_GET_REGION_INFO has no attribute. What does tell:

    access or question                   outcome              says
    unaligned load, through the mapping  SIGBUS, BUS_ADRALN   Device
                                         works                Normal: NC or cacheable
                                         SIGBUS, another code nothing: memory is off, or an abort
    loads, after DC CIVAC and again      as fast, or faster   a hint only, and none on an emulator
    a slot without the flag              taken, or EINVAL     uncached, or cacheable (1)
    a slot with the flag, and without    one of them taken    cacheable, or uncached (2)
    a scratch guest on a slot            verdict WB, or NC    cacheable, or uncached (3)

(1) mainline where capability 243 is 0; (2) rfc; (3) mainline where it is 1: there KVM follows the
VMA (`vmm.coherence.verdict`). Only of a mapping that is VM_PFNMAP: KVM takes all other memory. A
legacy kernel is asked nothing: it takes any slot, and makes cacheable device memory Device.

The load is safe for any device, if stage 1 decides. An alignment fault on Device memory is taken
before the access (Arm ARM, "Alignment of data accesses"), so no register is read, and Linux repairs
none of 64-bit code (arch/arm64/mm/fault.c, do_alignment_fault); Normal memory may
be read by speculation at any time, so a driver that maps it Normal has allowed reads. It is not
safe where this host is itself a guest, and its hypervisor maps the device's memory Device at stage
2 under a stage 1 of Normal: the fault is then the hypervisor's, whose KVM_RUN may fail with EFAULT
and end this host. From inside that cannot be told.

LDXR and atomics, which Normal-NC need not support, are not tried: some interconnects answer with an
SError, which ends the host. Timing was never seen on a real host, so it decides nothing.

Source: arch/arm64/mm/fault.c (fault_info, do_alignment_fault); arch/arm64/kvm/mmu.c
(kvm_vma_is_cacheable, kvm_arch_prepare_memory_region).
"""

from __future__ import annotations

import errno
import mmap
import signal
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.coherence import vma
from vmm.coherence.capability import Generation, Support
from vmm.coherence.policy import Attribute, Stage1
from vmm.coherence.prove import prove
from vmm.coherence.verdict import MemoryType
from vmm.errors import HostError
from vmm.kvm.slots import MemorySlot, takes_slot
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping, Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.coherence.capability import HostCapability
    from vmm.kvm.system import System

UNALIGNED: Final = 1
"""Offset in a page of the load of 8 bytes."""
CLEAR: Final = 4
"""How many times slower one of two timed walks has to be to count as slower."""


class Says(Enum):
    """What one observation tells about a mapping."""

    DEVICE = "Device"
    NORMAL = "Normal: non-cacheable or cacheable"
    UNCACHED = "uncached"
    CACHEABLE = "cacheable"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Evidence:
    """One observation, in a sentence."""

    says: Says
    because: str


class Walks(NamedTuple):
    """Ticks of a walk over a page: *cold*, after its lines were flushed, and *warm*, at once again.

    The ticks only compare with those of the same machine.
    """

    cold: int
    warm: int


class Area(NamedTuple):
    """A mapping: *offset* in a scratch VM, *size*, both in bytes, and its host virtual address."""

    offset: int
    size: int
    host_address: int


# --- through the host's own mapping ---------------------------------------------------------------


def look(areas: Iterable[Area]) -> list[Evidence]:
    """Load from the first and the last page of each of *areas*; return what the loads say.

    Nothing, if the same load faults on ordinary memory too. Where all work, a page is timed. Empty
    on machines that are not arm64. Raises `HostError` if no process can be made for it.
    """
    pages = {
        page
        for area in areas
        for page in (area.host_address, area.host_address + area.size - mmap.PAGESIZE)
    }
    if not lib.pyvmm_ctr_el0() or not pages:
        return []
    with Mapping.anonymous(mmap.PAGESIZE) as ordinary:
        ordinary.view[0] = 1  # no longer the page of zeroes that all processes share
        return weigh(sorted(pages), Region(0, ordinary.view).host_address)


def weigh(pages: Sequence[int], ordinary: int) -> list[Evidence]:
    """Do what `look` does with *pages*, and with one of *ordinary* memory: host addresses."""
    control = load(ordinary + UNALIGNED)
    if control.says is not Says.NORMAL:
        return [Evidence(Says.NOTHING, f"of ordinary memory, too, {control.because}")]
    loads = [load(page + UNALIGNED) for page in pages]
    evidence = list(dict.fromkeys(loads))
    if all(one.says is Says.NORMAL for one in loads):
        evidence.append(compare(walk(pages[0]), walk(ordinary)))
    return evidence


def load(host_address: int) -> Evidence:
    """Load 8 bytes at *host_address*, and return what that says. Raises `HostError`."""
    fault = ffi.new("struct pyvmm_fault *")
    _check(lib.pyvmm_stage1_load(host_address, fault))
    what = "an unaligned load through the host's mapping"
    if not fault.number:
        return Evidence(Says.NORMAL, f"{what} works, so it is Normal")
    if (fault.number, fault.code) == (signal.SIGBUS, lib.BUS_ADRALN):
        return Evidence(Says.DEVICE, f"{what} takes an alignment fault, so it is Device")
    if (fault.number, fault.code) == (signal.SIGBUS, lib.BUS_ADRERR):
        why = "finds nothing (BUS_ADRERR): is the device's memory off?"
    else:
        why = f"ends with signal {fault.number}, code {fault.code}"
    return Evidence(Says.NOTHING, f"{what} {why}")


def walk(host_address: int) -> Walks | None:
    """Time loads of the page at *host_address*; None if one faults. Raises `HostError`."""
    walks, fault = ffi.new("struct pyvmm_walks *"), ffi.new("struct pyvmm_fault *")
    _check(lib.pyvmm_stage1_walk(host_address, walks, fault))
    return None if fault.number else Walks(int(walks.cold), int(walks.warm))


def _check(error: int) -> None:
    if error:
        name = errno.errorcode.get(-error, str(-error))
        raise HostError(f"cannot make a process that measures the host's mapping: {name}")


def compare(walks: Walks | None, own: Walks | None) -> Evidence:
    """Return what *walks* of a range say beside those of ordinary memory. Pure: only a hint."""
    if walks is None or own is None or own.cold < CLEAR * own.warm:
        because = "timing says nothing here: DC CIVAC slows no load of ordinary memory"
        return Evidence(Says.NOTHING, because)
    told = f"a page takes {walks.cold} ticks after DC CIVAC, then {walks.warm}"
    if walks.cold >= CLEAR * walks.warm and walks.warm < CLEAR * own.warm:
        return Evidence(Says.NOTHING, f"timing hints at cacheable: {told}")
    if walks.cold < CLEAR * walks.warm and walks.warm >= CLEAR * own.warm:
        return Evidence(Says.NOTHING, f"timing hints at non-cacheable: {told}")
    return Evidence(Says.NOTHING, f"timing is not clear: {told}")


# --- by KVM's answers -----------------------------------------------------------------------------


def ask(
    system: System, areas: Sequence[Area], capability: HostCapability, *, by_guest: bool
) -> list[Evidence]:
    """Ask KVM about *areas*, on scratch VMs; empty where this kernel's answers tell nothing.

    Without *by_guest* no guest touches them: then only the slots that it takes tell. Raises
    `KvmError`.
    """
    behind = [vma.find(area.host_address) for area in areas]
    if not all(found is not None and found.is_pfnmap for found in behind):
        return []
    supported = capability.support is Support.SUPPORTED
    if capability.generation is Generation.RFC and supported:
        return [_ask_with_the_flag(system, areas, capability)]
    if capability.said:
        return []
    if supported:
        return _ask_for_a_mapping(system, areas, capability, by_guest=by_guest)
    if capability.generation is not Generation.MAINLINE or capability.on_vm:
        return []
    taken = accepts(system, areas, MemFlag(0))
    said = "takes a slot of it, though capability 243 is 0" if taken else "refuses a slot of it"
    return [Evidence(Says.UNCACHED if taken else Says.CACHEABLE, f"the kernel {said}")]


def _ask_for_a_mapping(
    system: System, areas: Sequence[Area], capability: HostCapability, *, by_guest: bool
) -> list[Evidence]:
    per_vm = capability.generation is Generation.PER_VM
    if per_vm and not accepts(system, areas, MemFlag(0)):
        because = "the kernel refuses a slot of it in a VM that has not enabled capability 243"
        return [Evidence(Says.CACHEABLE, because)]
    return [_ask_a_guest(system, area) for area in areas] if by_guest else []


def _ask_with_the_flag(
    system: System, areas: Sequence[Area], capability: HostCapability
) -> Evidence:
    plain, flagged = (accepts(system, areas, flag) for flag in (MemFlag(0), MemFlag.WRITE_BACK))
    if flagged and not plain:
        because = "the kernel takes a slot of it with the Write-Back flag only"
        return Evidence(Says.CACHEABLE, because)
    if plain and not flagged and not capability.said:
        because = "the kernel takes a slot of it without the Write-Back flag only"
        return Evidence(Says.UNCACHED, because)
    how = {
        (True, True): "with memory-slot flag bit 3 and without",
        (True, False): "without memory-slot flag bit 3, which only --uapi says is Write-Back",
        (False, False): "neither with memory-slot flag bit 3 nor without",
    }[plain, flagged]
    return Evidence(Says.NOTHING, f"the kernel takes a slot of it {how}")


def _ask_a_guest(system: System, area: Area) -> Evidence:
    verdict = prove(system, area.host_address, area.size)
    says = {
        MemoryType.FORCED_WRITE_BACK: Says.CACHEABLE,
        MemoryType.NON_CACHEABLE: Says.UNCACHED,
    }.get(verdict.memory_type, Says.NOTHING)
    return Evidence(says, f"KVM follows it, and a scratch guest gets {verdict}")


def accepts(system: System, areas: Sequence[Area], flags: MemFlag) -> bool:
    """Tell whether a scratch VM takes slots of *areas* with *flags*; it has no vCPU.

    Raises `KvmError` if they fail with another errno than EINVAL.
    """
    with system.create_vm(max(area.offset + area.size for area in areas)) as vm:
        slots = (MemorySlot(number, int(flags), *area) for number, area in enumerate(areas))
        return all(takes_slot(vm, slot) for slot in slots)


# --- all of it ------------------------------------------------------------------------------------


def measure(
    prior: Attribute, system: System, areas: Sequence[Area], capability: HostCapability
) -> Attribute:
    """Return the attribute of *areas*, the mappings of one region; *prior* is the driver's source.

    Where KVM supports cacheable memory it is asked, unless a load has shown Device, and nothing is
    cacheable but what its answer shows to be. A guest, which reads, touches only what a load has
    shown to be Normal. Elsewhere KVM is asked about what is unknown. Raises `HostError`.
    """
    if not areas:
        return prior
    evidence = look(areas)
    said = {one.says for one in evidence}
    found = judge(prior, evidence)
    supported = capability.support is Support.SUPPORTED
    if Says.DEVICE in said or (found.stage1 is not Stage1.UNKNOWN and not supported):
        return found
    answers = ask(system, areas, capability, by_guest=Says.NORMAL in said)
    found = judge(prior, [*evidence, *answers])
    shown = any(one.says is Says.CACHEABLE for one in answers)
    if found.stage1 is Stage1.CACHEABLE and supported and not shown:
        because = f"{found.because}; but KVM's answers do not show that it is cacheable"
        return Attribute(Stage1.UNKNOWN, because)
    return found


# --- what to believe ------------------------------------------------------------------------------

DECIDES: Final = {
    Says.DEVICE: Stage1.UNCACHED,
    Says.UNCACHED: Stage1.UNCACHED,
    Says.CACHEABLE: Stage1.CACHEABLE,
}


def judge(prior: Attribute, evidence: Sequence[Evidence]) -> Attribute:
    """Return the attribute that *prior*, what the driver's source says, and *evidence* make. Pure.

    Evidence goes first. Observations that contradict each other, a prior of Device where the
    mapping turns out to be Normal, or one of cacheable of which nothing shows that it is memory,
    make it unknown: it may be cacheable, and may be not.
    """
    if not evidence:
        return prior
    said = {one.says for one in evidence}
    told = "; ".join(one.because for one in evidence)
    decided = {DECIDES[one] for one in said if one in DECIDES}
    if len(decided) > 1 or {Says.DEVICE, Says.NORMAL} <= said:
        return Attribute(Stage1.UNKNOWN, f"observations contradict each other: {told}")
    if not decided:
        if Says.NORMAL in said and prior.is_device:
            return Attribute(Stage1.UNKNOWN, f"{told}, although {prior.because}")
        if Says.NORMAL not in said and prior.stage1 is Stage1.CACHEABLE:
            return Attribute(Stage1.UNKNOWN, f"{told}, although {prior.because}")
        because = f"{prior.because}; {told}"
        cacheable = prior.stage1 is Stage1.CACHEABLE
        return Attribute(prior.stage1, because, prior.is_device, may_be_written=cacheable)
    (stage1,) = decided
    if prior.stage1 is stage1:
        told = f"{told}; {prior.because}"
    elif prior.stage1 is not Stage1.UNKNOWN:
        told = f"{told}, although {prior.because}"
    agreed = stage1 is prior.stage1 is Stage1.CACHEABLE
    return Attribute(stage1, told, Says.DEVICE in said, may_be_written=agreed)
