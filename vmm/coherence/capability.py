"""What this host's kernel offers: KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED and memory-slot flags.

Generations of kernels, told apart by their answers and not by their version:

                 243 on /dev/kvm   243 on a VM   bit 3 on a slot
    legacy       0                 0             EINVAL           before Linux 6.17
    mainline     EINVAL            0 or 1        EINVAL           6.17 and later
    rfc          EINVAL            0 or 2        accepted, if 2   the proposal (see lab/kernel)
    per VM       EINVAL            0 or 1        EINVAL           another: KVM_ENABLE_CAP works
    vendor       0                 0             EINVAL           follows the VMA, says nothing

A kernel that knows the capability answers EINVAL on /dev/kvm, where there is no VM; one that does
not answers 0 (arch/arm64/kvm/arm.c, kvm_vm_ioctl_check_extension). So 0 on a VM alone says nothing;
0 on a VM and EINVAL on /dev/kvm say that the hardware lacks FEAT_S2FWB or CTR_EL0.DIC. Which of the
two a vCPU's registers tell, on any kernel (`vmm.coherence.cpu`). A nonzero answer on a VM counts
only with that EINVAL, and on a CPU with FWB: out of tree, capability numbers collide. Where answers
contradict each other, what the kernel does is unknown, and it is treated as a legacy one.

Bit 3 of a slot's flags has other uses out of tree (KVM_MEM_USERFAULT, a flag for non-coherent
DMA). An accepted bit 3 is taken for the proposal's flag only if the capability says so, or if a
slot of cacheable PFNMAP memory shows it: refused without the flag, taken with it
(`vmm.coherence.udmabuf`). So the series as it was posted, with another number for its capability,
is recognized as well. A vendor's kernel answers as a legacy one does; ``--uapi vendor`` asks for an
experiment with each region (`vmm.passthrough.region_memory`).
"""

from __future__ import annotations

import errno
import mmap
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from vmm.coherence import udmabuf
from vmm.coherence.cpu import CacheFeatures
from vmm.kvm.capability import Cap
from vmm.kvm.fd import KvmError
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping, Region

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping as MappingType

    from vmm.coherence.udmabuf import SlotAnswers
    from vmm.kvm.system import System
    from vmm.kvm.vm import Vm

CAPABILITY: Final = Cap.ARM_CACHEABLE_PFNMAP_SUPPORTED
FOLLOWS_VMA: Final = 1 << 0
ON_REQUEST: Final = 1 << 1
"""Bits of the capability's answer on a VM. Mainline sets the first only."""

NEVER_A_FLAG: Final = 1 << 31
"""Bits 16 to 31 of a slot's flags are the kernel's own (include/linux/kvm_host.h)."""

NO_FWB: Final = "this CPU is not known to have FEAT_S2FWB"


class Support(Enum):
    """Whether KVM can map cacheable PFNMAP memory Write-Back on this host."""

    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"
    UNKNOWN = "unknown to this kernel"


class Generation(Enum):
    """Which interface for cacheable PFNMAP memory this kernel has."""

    LEGACY = "legacy"
    MAINLINE = "mainline"
    RFC = "rfc"
    PER_VM = "per VM"
    VENDOR = "vendor"


class FlagAnswer(Enum):
    """How a kernel answers a memory-slot flag, on a scratch VM."""

    ACCEPTED = "accepted"
    UNSUPPORTED = "unsupported"
    AMBIGUOUS = "accepted, but nothing says as what"
    UNTESTABLE = "untestable"


@dataclass(frozen=True)
class HostCapability:
    """A host's support for cacheable memory, as it was asked before any guest runs.

    on_system, on_vm   answers of KVM_CHECK_EXTENSION for the capability; None: EINVAL
    ipa_bits           size of the largest guest physical space, in bits
    page_size          in bytes
    cpu                FWB, DIC and IDC, as a vCPU's registers tell
    flags              for each memory-slot flag, the answers of the two ioctls
    evidence           sentences that say how support and generation are known
    said               the generation is what ``--uapi`` says, and nothing else shows it
    """

    support: Support
    generation: Generation
    on_system: int | None
    on_vm: int | None
    page_size: int
    ipa_bits: int
    cpu: CacheFeatures
    flags: MappingType[str, MappingType[str, FlagAnswer]]
    evidence: tuple[str, ...]
    said: bool = False

    @classmethod
    def probe(cls, system: System) -> HostCapability:
        """Ask KVM, on a scratch VM. Raises `KvmError`."""
        with system.create_vm() as vm:
            on_system = _answer(system.check_extension)
            on_vm = _answer(vm.check_extension)
            flags = probe_flags(vm)
            cpu = CacheFeatures.of_vm(vm)
            per_vm = on_system is None and bool(on_vm) and _enabled(vm)
            sample = udmabuf.ask(vm)
        bit3 = flags[MemFlag.WRITE_BACK.name or ""]["KVM_SET_USER_MEMORY_REGION"]
        support, generation, evidence = judge(on_system, on_vm, bit3, cpu, sample, per_vm=per_vm)
        if bit3 is FlagAnswer.ACCEPTED and generation is not Generation.RFC:
            flags = {**flags, MemFlag.WRITE_BACK.name or "": _ambiguous(flags)}
        return cls(
            support=support,
            generation=generation,
            on_system=on_system,
            on_vm=on_vm,
            page_size=mmap.PAGESIZE,
            ipa_bits=system.ipa_bits(),
            cpu=cpu,
            flags=flags,
            evidence=evidence,
        )

    def prepare(self, system: System) -> None:
        """Make *system*'s VMs ask for what the kernel gives only to VMs that do."""
        if self.generation is Generation.PER_VM:
            system.vm_capabilities = (*system.vm_capabilities, int(CAPABILITY))

    @property
    def forces_write_back(self) -> bool:
        """Whether KVM forces Write-Back at stage 2 on memory that the kernel manages.

        It does wherever it has FEAT_S2FWB (arch/arm64/kvm/hyp/pgtable.c, stage2_set_prot_attr).
        Neither capability 243 nor a memory-slot flag is needed for that. False where FWB cannot be
        told.
        """
        return self.cpu.fwb is True

    @property
    def flag_answer(self) -> FlagAnswer:
        """The answer to flag bit 3 on a slot of ordinary memory."""
        answers = self.flags.get(MemFlag.WRITE_BACK.name or "", {})
        return answers.get("KVM_SET_USER_MEMORY_REGION", FlagAnswer.UNTESTABLE)

    @property
    def _ram(self) -> str:
        if self.cpu.fwb is None:
            return "it cannot be told"
        return "forced Write-Back" if self.cpu.fwb else "guest decides"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        plain = asdict(self)
        plain["support"] = self.support.value
        plain["generation"] = self.generation.value
        plain["cpu"]["evidence"] = list(self.cpu.evidence)
        plain["flags"] = {
            name: {ioctl: answer.value for ioctl, answer in answers.items()}
            for name, answers in self.flags.items()
        }
        return plain

    def lines(self) -> list[str]:
        """Return lines of text."""
        return [
            f"cacheable PFNMAP     {self.support.value}",
            f"kernel's generation  {self.generation.value}",
            *(f"  because            {sentence}" for sentence in self.evidence),
            f"RAM at stage 2       {self._ram}",
            *(f"  because            {sentence}" for sentence in self.cpu.evidence),
            "",
            f"{'memory-slot flag':20} {'SET_USER_MEMORY_REGION':36} REGION2",
            *(
                f"{name:20} {answers['KVM_SET_USER_MEMORY_REGION'].value:36} "
                f"{answers['KVM_SET_USER_MEMORY_REGION2'].value}"
                for name, answers in self.flags.items()
            ),
        ]


def judge(  # noqa: PLR0913  (one argument for each answer)
    on_system: int | None,
    on_vm: int | None,
    bit3: FlagAnswer,
    cpu: CacheFeatures,
    sample: SlotAnswers | None = None,
    *,
    per_vm: bool = False,
) -> tuple[Support, Generation, tuple[str, ...]]:
    """Return support, generation and evidence for the answers of a kernel. Pure.

    *per_vm*: the capability could be enabled on the VM, which *sample* then was a slot of.

    A claim counts on a CPU with FEAT_S2FWB only, and only if *sample* does not contradict it: what
    such a kernel does is unknown, as with a legacy one.
    """
    seen = () if sample is None else (str(sample),)
    proposed = bit3 is FlagAnswer.ACCEPTED and sample is not None and sample.is_the_proposal
    if proposed and on_system is not None and cpu.fwb is True:
        what = f"no capability {int(CAPABILITY)} claims flag bit 3, but it works as proposed"
        return Support.SUPPORTED, Generation.RFC, (what, *seen)
    support, generation, evidence = _by_answers(on_system, on_vm, bit3, cpu)
    if proposed and cpu.fwb is not True:
        because = f"the flag cannot be the proposal's: {NO_FWB}"
        return Support.UNKNOWN, Generation.LEGACY, (*evidence, because, *seen)
    if sample is not None and not _agrees(sample, support, generation):
        evidence = (*evidence, "but slots show otherwise")
        support, generation = Support.UNKNOWN, Generation.LEGACY
    if per_vm and generation is Generation.MAINLINE:
        generation = Generation.PER_VM
        evidence = (*evidence, "and KVM_ENABLE_CAP of it on a VM works: each VM has to ask")
    return support, generation, (*evidence, *seen)


def _agrees(sample: SlotAnswers, support: Support, generation: Generation) -> bool:
    """Return whether slots of cacheable PFNMAP memory do what the capability's answer says."""
    if support is Support.UNKNOWN:
        return True
    if generation is Generation.RFC:
        return sample.is_the_proposal
    if sample.is_the_proposal:
        return False
    return sample.plain is (support is Support.SUPPORTED)


def _by_answers(
    on_system: int | None, on_vm: int | None, bit3: FlagAnswer, cpu: CacheFeatures
) -> tuple[Support, Generation, tuple[str, ...]]:
    """Judge what KVM_CHECK_EXTENSION and a slot of ordinary memory say."""
    number = int(CAPABILITY)
    unknown = Support.UNKNOWN, Generation.LEGACY
    accepted = bit3 is FlagAnswer.ACCEPTED
    stray: tuple[str, ...] = ()
    if accepted:
        what = "flag bit 3 is accepted on a slot, but capability 243 does not claim it"
        stray = (f"{what}: it means something else here (others use it out of tree)",)
    if on_system is not None:
        old = f"capability {number} is {on_system} on /dev/kvm, where a kernel that knows it says"
        other = (f"so the {on_vm} on a VM means something else here",) if on_vm else ()
        return *unknown, (f"{old} EINVAL", *other, *stray)
    if on_vm and cpu.fwb is not True:
        what = f"capability {number} on a VM is {on_vm}, and {NO_FWB}"
        return *unknown, (what, "so the number means something else here", *stray)
    known = f"capability {number} on /dev/kvm is EINVAL: this kernel knows it, for VMs only"
    if not on_vm:
        lacking = f"on a VM it is 0: the hardware lacks {cpu.lacking}"
        return Support.UNSUPPORTED, Generation.MAINLINE, (known, lacking, *stray)
    how = f"capability {number} on a VM is {on_vm}"
    if on_vm & ON_REQUEST:
        how = f"{how}: Write-Back for slots that ask (bit 1)"
        taken = (
            f"a slot of ordinary memory with flag bit 3 is {'accepted' if accepted else 'refused'}"
        )
        judged = (Support.SUPPORTED, Generation.RFC) if accepted else unknown
        return *judged, (how, taken)
    if on_vm & FOLLOWS_VMA:
        how = f"{how}: slots follow the VMA's attributes"
        return Support.SUPPORTED, Generation.MAINLINE, (how, *stray)
    return *unknown, (known, f"{how}, which claims nothing that pyvmm knows of", *stray)


def probe_flags(vm: Vm) -> dict[str, dict[str, FlagAnswer]]:
    """Try each memory-slot flag with both ioctls on *vm*, a scratch VM. Raises `KvmError`."""
    return {flag.name or "": probe_flag(vm, flag) for flag in MemFlag}


def probe_flag(vm: Vm, flag: int) -> dict[str, FlagAnswer]:
    """Try *flag* with both ioctls on *vm*, a scratch VM. Raises `KvmError`."""
    with Mapping.anonymous(mmap.PAGESIZE) as mapping:
        region = Region(0, mapping.view)
        calls = {
            "KVM_SET_USER_MEMORY_REGION": vm.set_user_memory_region,
            "KVM_SET_USER_MEMORY_REGION2": vm.set_user_memory_region2,
        }
        return {name: _try(call, region, flag, vm) for name, call in calls.items()}


def _try(call: Callable[..., None], region: Region, flag: int, vm: Vm) -> FlagAnswer:
    """Try one flag: it is unsupported if a slot is accepted without it and refused with it."""
    where = (region.base, region.size, region.host_address)
    more: dict[str, int] = {}
    if flag == MemFlag.GUEST_MEMFD:
        try:
            memfd = vm.create_guest_memfd(region.size)
        except KvmError:
            return FlagAnswer.UNSUPPORTED
        if call == vm.set_user_memory_region:  # which has no field for the descriptor
            memfd.close()
            return FlagAnswer.UNSUPPORTED
        with memfd:
            return _register(call, int(flag), where, {"guest_memfd": memfd.fileno()})
    if _register(call, 0, where, more) is not FlagAnswer.ACCEPTED:
        return FlagAnswer.UNTESTABLE  # this ioctl does not exist, or accepts no slot
    if _register(call, NEVER_A_FLAG, where, more) is FlagAnswer.ACCEPTED:
        return FlagAnswer.UNTESTABLE  # this kernel checks no flags
    return _register(call, int(flag), where, more)


def _register(
    call: Callable[..., None], flags: int, where: tuple[int, int, int], more: dict[str, int]
) -> FlagAnswer:
    base, size, address = where
    try:
        call(0, flags, base, size, address, **more)
    except KvmError as error:
        refused = error.errno == errno.EINVAL
        return FlagAnswer.UNSUPPORTED if refused else FlagAnswer.UNTESTABLE
    call(0, 0, base, 0, address)
    return FlagAnswer.ACCEPTED


def _ambiguous(flags: MappingType[str, MappingType[str, FlagAnswer]]) -> dict[str, FlagAnswer]:
    return {
        ioctl: FlagAnswer.AMBIGUOUS if answer is FlagAnswer.ACCEPTED else answer
        for ioctl, answer in flags[MemFlag.WRITE_BACK.name or ""].items()
    }


def _enabled(vm: Vm) -> bool:
    """Return whether the capability can be enabled on *vm*; mainline has nothing to enable."""
    try:
        vm.enable_cap(int(CAPABILITY))
    except KvmError:
        return False
    return True


def _answer(check: Callable[[int], int]) -> int | None:
    try:
        return check(CAPABILITY)
    except KvmError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
