"""What a guest sees of the CPU, and may go on using when it moves: it must not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping  # noqa: TC003  (get_type_hints evaluates it)
from dataclasses import dataclass
from typing import Final

from vmm.arm64 import registers
from vmm.arm64.id_registers import field_of, id_registers
from vmm.errors import UserError
from vmm.typed_json import Hex, encode

HASH_DIGITS: Final = 16

FOLLOWS: Final[Mapping[str, tuple[str, ...]]] = {
    "GIC": ("ID_AA64PFR0_EL1.GIC", "ID_PFR1_EL1.GIC"),
    "PMU_V3": ("ID_AA64DFR0_EL1.PMUVer", "ID_DFR0_EL1.PerfMon"),
    "SVE": (
        "ID_AA64PFR0_EL1.SVE",
        *(f"ID_AA64ZFR0_EL1.{one.name}" for one in id_registers()["ID_AA64ZFR0_EL1"].fields),
    ),
    "PTRAUTH": (
        *(f"ID_AA64ISAR1_EL1.{name}" for name in ("APA", "API", "GPA", "GPI")),
        *(f"ID_AA64ISAR2_EL1.{name}" for name in ("APA3", "GPA3")),
    ),
}
"""Fields that are 0 in a VM without a feature, whatever the CPU has (arch/arm64/kvm/sys_regs.c).

GIC is no feature of a vCPU: KVM sets these fields as the VM's interrupt controller has it.
"""


@dataclass(frozen=True)
class VisibleCpu:
    """What a guest sees, or the most that it may see (`vmm.state.baseline`).

    features            optional features of vCPUs, by `vmm.arm64.processor.OPTIONAL`'s names
    gic                 what KVM can emulate: GICv3, GICv2, ITS
    ipa_bits            of the largest guest physical space
    counter_hz          CNTFRQ_EL0, of the counter that all timers compare with
    sve_vector_lengths  in bytes, rising
    firmware            pseudo-registers by name, without KVM_REG_ARM_
    registers           ID registers by name
    """

    features: tuple[str, ...]
    gic: tuple[str, ...]
    ipa_bits: int
    counter_hz: int
    sve_vector_lengths: tuple[int, ...]
    firmware: Mapping[str, Hex]
    registers: Mapping[str, Hex]

    def check(self, where: str) -> None:
        """Raise `UserError`, which begins with *where*, if it names a register that is none."""
        for kind, names, known in (
            ("registers", self.registers, id_registers()),
            ("firmware", self.firmware, registers.FIRMWARE),
        ):
            for name in names:
                if name not in known:
                    raise UserError(
                        f"{where}.{kind}: {name} is no register that this pyvmm knows",
                        "use the pyvmm that wrote it, or a newer one",
                    )

    @property
    def hash(self) -> str:
        """`HASH_DIGITS` hexadecimal digits of a SHA-256: hosts that share it look the same."""
        text = json.dumps(encode(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]

    def field(self, register: str, name: str) -> int | None:
        """Return the value of a field of an ID register; None: KVM shows no such register."""
        if register not in self.registers:
            return None
        return field_of(register, name).get(self.registers[register])


def without(registers: Mapping[str, Hex], features: tuple[str, ...]) -> dict[str, Hex]:
    """Return *registers* as a VM shows them that has no optional features but *features*."""
    result = dict(registers)
    for feature, followers in FOLLOWS.items():
        if feature in features:
            continue
        for follower in followers:
            register, _, name = follower.partition(".")
            if register in result:
                result[register] = field_of(register, name).put(result[register], 0)
    return result
