"""Describe a host: what a VM of pyvmm's sees there, what KVM lets userspace change, what is known.

A scratch VM with a GIC and one vCPU, made as the machine makes its own, is asked.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping  # noqa: TC003  (get_type_hints evaluates it)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmm._native import lib
from vmm.arm64 import registers
from vmm.arm64.gic import KINDS, Gic
from vmm.arm64.id_registers import Field, field_of, id_registers
from vmm.arm64.processor import ProcessorModel
from vmm.coherence.capability import FlagAnswer, Generation, HostCapability, Support
from vmm.errors import HostError, VmmError
from vmm.kvm.capability import Cap
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.state.visible_cpu import VisibleCpu
from vmm.typed_json import Hex, decode, encode, load

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm
    from vmm.vfio.function import HostFunction

PUT_UP_WITH: Final = (
    "ID_AA64MMFR2_EL1.NV",
    "ID_AA64PFR0_EL1.MPAM",
    "ID_AA64PFR1_EL1.MPAM_frac",
    "ID_AA64PFR1_EL1.MTE_frac",
)
"""Fields that older kernels showed by mistake. KVM takes the values these had, and ignores them
(arch/arm64/kvm/sys_regs.c, set_id_aa64mmfr2_el1, set_id_aa64pfr0_el1, set_id_aa64pfr1_el1)."""

FORMAT: Final = "pyvmm host description"
VERSION: Final = 1


@dataclass(frozen=True)
class Cacheable:
    """Cacheable memory at stage 2, as `vmm.coherence` knows it; None: it cannot be told.

    on_system, on_vm   answers to capability 243 on /dev/kvm and on a VM; None: EINVAL
    """

    fwb: bool | None
    dic: bool | None
    idc: bool | None
    support: Support
    generation: Generation
    on_system: int | None
    on_vm: int | None
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """What KVM lets userspace change of ID registers, and what it puts up with.

    writable        bits, by register; None: KVM cannot tell (Linux before 6.7)
    ignored         by field: values that KVM takes, and shows its own instead (`PUT_UP_WITH`)
    implementation  whether a VM can choose MIDR_EL1 and its like: KVM_CAP_ARM_WRITABLE_IMP_ID_REGS
    """

    writable: Mapping[str, Hex] | None
    ignored: Mapping[str, tuple[int, ...]]
    implementation: bool


@dataclass(frozen=True)
class AssignedDevice:
    """A PCI device that a VFIO driver has. *migration*: VFIO_MIGRATION_*; None: see *note*."""

    bdf: str
    vendor: Hex
    device: Hex
    driver: str
    migration: tuple[str, ...] | None
    note: str


@dataclass(frozen=True)
class HostDescription:
    """One host.

    kernel                  its release
    page_size               in bytes
    cpu                     what a guest sees
    changes                 what KVM lets userspace change of that
    mte                     KVM_CAP_ARM_MTE: guests could have memory tagging
    slot_flags              answers to memory-slot flags, by KVM_SET_USER_MEMORY_REGION
    devices                 PCI devices that a VFIO driver has
    """

    kernel: str
    page_size: int
    cacheable: Cacheable
    cpu: VisibleCpu
    changes: Changes
    mte: bool
    slot_flags: Mapping[str, FlagAnswer]
    devices: tuple[AssignedDevice, ...]

    @classmethod
    def collect(cls, *, devices: bool = True) -> HostDescription:
        """Ask this host. VFIO devices that are not in use are opened, which resets them.

        Without *devices* they are left alone, and out.

        Raises `HostError`: there is no KVM, or none of arm64.
        """
        with System.open() as system:
            found = HostCapability.probe(system)
            if not lib.pyvmm_ctr_el0():
                raise HostError("this host is not arm64", "use --host lab")
            found.prepare(system)
            with system.create_vm() as vm:
                cpu, changes = look(vm, found.ipa_bits)
                return cls(
                    kernel=platform.release(),
                    page_size=found.page_size,
                    cacheable=_cacheable(found),
                    cpu=cpu,
                    changes=changes,
                    mte=vm.check_extension(Cap.ARM_MTE) > 0,
                    slot_flags={
                        name: answers["KVM_SET_USER_MEMORY_REGION"]
                        for name, answers in found.flags.items()
                    },
                    devices=_devices() if devices else (),
                )

    @classmethod
    def read(cls, path: Path) -> HostDescription:
        """Read a file of `text`. Raises `UserError`, which names the member at fault."""
        value = load(path, FORMAT, VERSION)
        return cls.from_json(value, str(path))

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> HostDescription:
        """Return what `as_json` made *value* of. Raises `UserError`, which begins with *where*."""
        members = {name: one for name, one in value.items() if name not in ("format", "version")}
        described = decode(cls, members, where)
        described.cpu.check(f"{where}.cpu")
        return described

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"format": FORMAT, "version": VERSION, **encode(self)}

    def text(self) -> str:
        """Return it as JSON text, a line for each register."""
        return json.dumps(self.as_json(), indent=1) + "\n"


def _cacheable(found: HostCapability) -> Cacheable:
    return Cacheable(
        fwb=found.cpu.fwb,
        dic=found.cpu.dic,
        idc=found.cpu.idc,
        support=found.support,
        generation=found.generation,
        on_system=found.on_system,
        on_vm=found.on_vm,
        evidence=(*found.cpu.evidence, *found.evidence),
    )


def look(vm: Vm, ipa_bits: int) -> tuple[VisibleCpu, Changes]:
    """Return what a guest sees in *vm*, which has no vCPU and no GIC yet, and what can be changed.

    Raises `HostError`.
    """
    with Gic(vm, 1), vm.create_vcpu(0) as vcpu:
        model = ProcessorModel(vm)
        model.initialise(vcpu, powered_off=False)
        cpu = VisibleCpu(
            features=tuple(sorted(model.optional)),
            gic=tuple(name for name, kind in KINDS.items() if vm.can_create_device(kind)),
            ipa_bits=ipa_bits,
            counter_hz=lib.pyvmm_cntfrq_el0(),
            sve_vector_lengths=vector_lengths(vcpu),
            firmware=_read(vcpu, registers.FIRMWARE),
            registers=_read(vcpu, {name: one.id for name, one in id_registers().items()}),
        )
        implementation = vm.check_extension(Cap.ARM_WRITABLE_IMP_ID_REGS) > 0
        return cpu, Changes(_writable(vm), _ignored(vcpu, cpu), implementation)


def vector_lengths(vcpu: Vcpu) -> tuple[int, ...]:
    """Return the SVE vector lengths of *vcpu* in bytes, rising; none without SVE."""
    try:
        lengths = vcpu.get_one_reg(registers.SVE_VECTOR_LENGTHS)
    except KvmError:
        return ()
    return tuple(16 * (bit + 1) for bit in range(lengths.bit_length()) if lengths >> bit & 1)


def _read(vcpu: Vcpu, wanted: Mapping[str, int]) -> dict[str, Hex]:
    """Return the values of registers, by name; KVM does not show each one."""
    values = {}
    for name, register in wanted.items():
        try:
            values[name] = vcpu.get_one_reg(register)
        except KvmError:
            continue
    return values


def _writable(vm: Vm) -> dict[str, Hex] | None:
    masks = vm.id_register_masks()
    if masks is None:
        return None
    every = {name: masks[one.index] for name, one in id_registers().items()}
    return {name: mask for name, mask in every.items() if mask}


def _ignored(vcpu: Vcpu, cpu: VisibleCpu) -> dict[str, tuple[int, ...]]:
    """Offer KVM each value of each of `PUT_UP_WITH`; return those it takes and does not show."""
    found = {}
    for name in PUT_UP_WITH:
        register, _, field = name.partition(".")
        if register not in cpu.registers:
            continue
        one, now = field_of(register, field), cpu.registers[register]
        values = (value for value in range(1 << one.width) if one.put(now, value) != now)
        number = id_registers()[register].id
        taken = tuple(value for value in values if _is_ignored(vcpu, number, now, one, value))
        if taken:
            found[name] = taken
    return found


def _is_ignored(vcpu: Vcpu, register: int, now: int, field: Field, value: int) -> bool:
    try:
        vcpu.set_one_reg(register, field.put(now, value))
    except KvmError:
        return False
    return vcpu.get_one_reg(register) == now


def _devices() -> tuple[AssignedDevice, ...]:
    from vmm.vfio.function import HostFunction

    return tuple(_device(one) for one in HostFunction.all() if one.driven_by_vfio)


def _device(function: HostFunction) -> AssignedDevice:
    from vmm.vfio.device import open_device

    migration, note = None, ""
    try:
        with open_device(function.bdf) as device:
            migration = tuple(sorted(device.migration()))
    except VmmError as error:
        note = str(error)
    return AssignedDevice(
        bdf=function.bdf,
        vendor=function.vendor,
        device=function.device,
        driver=function.driver or "",
        migration=migration,
        note=note,
    )
