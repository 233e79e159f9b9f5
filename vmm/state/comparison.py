"""Why a guest of one host cannot go on at another: each reason, FEAT_S2FWB before all others.

    refusal(source, destination)    two hosts, before a snapshot is restored or a page moves
    refused(there, writable, seen)  what a host can show, and what is to be shown
    owed, notes                     the maintenance that a move owes; differences that may matter

What a guest has seen must stay true. Registers that KVM lets userspace write are set to what the
source showed, if that is no more than the destination has; what it does not let be written must be
equal. So a guest that started on the lesser host may move to the better one, but not always back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.arm64.id_registers import IMPLEMENTATION, id_registers
from vmm.errors import UserError
from vmm.state.visible_cpu import without

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmm.arm64.id_registers import IdRegister
    from vmm.state.host_description import Changes, HostDescription
    from vmm.state.visible_cpu import VisibleCpu

FWB: Final = "ID_AA64MMFR2_EL1.FWB"
WORKAROUND_2: Final = "SMCCC_ARCH_WORKAROUND_2"
PROTECTED: Final = 2
"""The levels of WORKAROUND_2 from here on are one for KVM, those below another one."""

ID_CHANGE: Final = "changes a guest-visible ID register"


@dataclass(frozen=True)
class Reason:
    """Why a guest cannot go on. *subject*: the field, register or part that is at fault."""

    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


def refusal(
    source: HostDescription,
    destination: HostDescription,
    shown: VisibleCpu | None = None,
    allowed: Collection[str] = (),
) -> list[Reason]:
    """Return why a VM of *source* cannot go on at *destination*; an empty list: it can.

    *shown* is what the VM has been shown, if it runs with a baseline; else all that the source has.
    *allowed* are subjects that the user overrides: see `check_override`.
    """
    seen = source.cpu if shown is None else shown
    reasons = refused(destination.cpu, destination.changes, seen)
    return [one for one in reasons if one.subject not in allowed]


def check_override(subjects: Collection[str]) -> None:
    """Raise `UserError` unless each of *subjects* is a field of an ID register, or a register."""
    for subject in subjects:
        register, _, name = subject.partition(".")
        known = id_registers().get(register)
        if known is None or (name and name not in [field.name for field in known.fields]):
            raise UserError(
                f"{subject} is no ID register, and no field of one",
                f"only what {ID_CHANGE} can be overridden, such as {FWB}",
            )


def refused(there: VisibleCpu, changes: Changes, seen: VisibleCpu) -> list[Reason]:
    """Return why a host cannot show *seen*; *there* is the most that it can show."""
    return [
        *_write_back(there, seen),
        *_registers(there, changes, seen),
        *_parts(there, seen),
        *_firmware(there, seen),
    ]


def _write_back(there: VisibleCpu, seen: VisibleCpu) -> Iterator[Reason]:
    register, _, field = FWB.partition(".")
    value, limit = seen.field(register, field), there.field(register, field)
    if value is None or limit is None:
        yield Reason(FWB, "it cannot be told whether both hosts have FEAT_S2FWB")
    elif value != limit:
        yield Reason(
            FWB,
            f"{value} was seen, the destination has {limit}. With FEAT_S2FWB stage 2 forces "
            "Write-Back, without it the guest decides. KVM does not let the field be written, "
            "either way (EINVAL)",
        )


def _registers(there: VisibleCpu, changes: Changes, seen: VisibleCpu) -> Iterator[Reason]:
    """Yield what is wrong with ID registers, but for FWB, which comes first."""
    both = tuple(name for name in seen.features if name in there.features)
    values, limits = without(seen.registers, both), without(there.registers, both)
    for name, value in values.items():
        register = id_registers()[name]
        if name not in limits:
            yield Reason(name, f"{value:#x} was seen; KVM does not show it at the destination")
        elif name in IMPLEMENTATION:
            if value != limits[name]:
                shown = " (KVM there would show the old value)" if changes.implementation else ""
                yield Reason(
                    name,
                    f"{value:#x} was seen, the destination has {limits[name]:#x}: another CPU, "
                    f"whose errata the guest does not work around{shown}",
                )
        else:
            yield from _fields(register, value, limits[name], changes)


def _fields(register: IdRegister, value: int, limit: int, changes: Changes) -> Iterator[Reason]:
    writable = (changes.writable or {}).get(register.name, 0)
    bits = register.refused(value, limit, writable)
    for field in register.fields:
        subject = f"{register.name}.{field.name}"
        if not bits & field.mask or subject == FWB:
            continue
        if field.get(value) in changes.ignored.get(subject, ()):
            continue
        fixed = field.mask & ~writable
        why = "KVM does not let it be written" if fixed else field.kind.value
        yield Reason(
            subject,
            f"{field.get(value)} was seen, the destination has {field.get(limit)}; {why}",
        )
    if rest := bits & ~sum(field.mask for field in register.fields):
        yield Reason(
            register.name,
            f"bits {rest:#x} of {value:#x} were seen, the destination has {limit:#x}; KVM does not "
            "let them be written",
        )


def _parts(there: VisibleCpu, seen: VisibleCpu) -> Iterator[Reason]:
    for feature in sorted(set(seen.features) - set(there.features)):
        yield Reason(feature, "vCPUs have it at the source, and cannot have it at the destination")
    if "SVE" in seen.features and "SVE" in there.features:
        longest = max(seen.sve_vector_lengths, default=0)
        up_to = tuple(length for length in there.sve_vector_lengths if length <= longest)
        if up_to != seen.sve_vector_lengths:
            yield Reason(
                "SVE",
                f"vectors of {_listed(seen.sve_vector_lengths)} bytes were seen, the destination "
                f"has {_listed(up_to)} up to {longest}",
            )
    gic = gic_of(seen)
    if gic not in there.gic:
        yield Reason("GIC", f"the guest has {gic}, KVM at the destination {_listed(there.gic)}")
    elif gic == "GICv3" and "ITS" in seen.gic and "ITS" not in there.gic:
        yield Reason("ITS", "the guest has one, KVM at the destination emulates none")
    if seen.ipa_bits > there.ipa_bits:
        yield Reason(
            "IPA",
            f"guests may have {seen.ipa_bits} bits of physical address, at the destination "
            f"{there.ipa_bits}",
        )
    if seen.counter_hz != there.counter_hz:
        yield Reason(
            "CNTFRQ_EL0",
            f"the counter runs at {seen.counter_hz} Hz, at the destination at {there.counter_hz}; "
            "KVM does not scale it",
        )


def gic_of(cpu: VisibleCpu) -> str:
    """Return the GIC that a machine gets there: `vmm.arm64.gic.Gic` prefers version 3."""
    return next((kind for kind in ("GICv3", "GICv2") if kind in cpu.gic), "no GIC")


def _firmware(there: VisibleCpu, seen: VisibleCpu) -> Iterator[Reason]:
    for name, value in seen.firmware.items():
        limit = there.firmware.get(name, 0)
        if "_BMAP" in name:
            taken = not value & ~limit
        elif name == WORKAROUND_2:
            taken = (value & 15 >= PROTECTED) <= (limit & 15 >= PROTECTED)
        else:
            taken = value <= limit
        if not taken:
            subject = f"KVM_REG_ARM_{name}"
            yield Reason(subject, f"{value:#x} was seen, the destination has {limit:#x}")


def owed(source: HostDescription, destination: HostDescription) -> list[str]:
    """Return the cache maintenance that whoever moves a guest between the two owes, by host."""
    found = []
    if source.cacheable.fwb is not True:
        found.append(
            "source: DC CIVAC of all guest memory, with the vCPUs stopped, before it is read: the "
            "guest may have written past lines that the VMM's own accesses left"
        )
    if destination.cacheable.fwb is not True:
        found.append(
            "destination: DC CVAC of all guest memory after it is written: the guest may read it "
            "with its caches off. From then on every access of the VMM's behind such a guest owes "
            "DC CIVAC before and DC CVAC after a write, which the source's ledger did not ask for"
        )
    if destination.cacheable.dic is not True or destination.cacheable.idc is not True:
        found.append(
            "destination: DC CVAU and IC IVAU of all guest memory after it is written: instruction "
            "fetches are not known to be coherent there (CTR_EL0.DIC, IDC)"
        )
    return found


def notes(source: HostDescription, destination: HostDescription) -> list[str]:
    """Return differences that matter to some guests only."""
    found = []
    if source.page_size != destination.page_size:
        found.append(
            f"pages of {source.page_size} and of {destination.page_size} bytes: a slot begins and "
            "ends at a multiple of the host's page, and a dirty log counts in them"
        )
    here, there = source.cacheable, destination.cacheable
    if (here.support, here.generation) != (there.support, there.generation):
        found.append(
            f"cacheable PFNMAP is {here.support.value} by the {here.generation.value} interface at "
            f"the source, {there.support.value} by {there.generation.value} at the destination: "
            "for guests with cacheable device memory"
        )
    if source.mte != destination.mte:
        found.append("only one host has memory tagging; pyvmm run gives it to no guest")
    flags = {**source.slot_flags, **destination.slot_flags}
    differ = [
        name
        for name in flags
        if source.slot_flags.get(name) is not destination.slot_flags.get(name)
    ]
    if differ:
        found.append(f"memory-slot flags are answered differently: {', '.join(sorted(differ))}")
    for device in source.devices:
        if device.migration is None:
            found.append(f"{device.bdf}: whether it migrates is not known: {device.note}")
        elif not device.migration:
            found.append(f"{device.bdf}: its driver, {device.driver}, cannot migrate it")
    return found


def _listed(things: tuple[object, ...]) -> str:
    return " ".join(map(str, things)) or "none"
