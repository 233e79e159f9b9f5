"""ID registers: their fields, and which values KVM takes for a register.

KVM lets userspace write some bits of them before a VM first runs, and only to describe a CPU that
can do no more than the host's (Documentation/virt/kvm/api.rst, KVM_ARM_GET_REG_WRITABLE_MASKS).
What is no more depends on the field. `refused` is KVM's own check (arm64_check_features in
arch/arm64/kvm/sys_regs.c), which userspace otherwise learns of by EINVAL alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.arm64 import registers
from vmm.arm64.id_fields import TABLE
from vmm.arm64.register_names import name_of, system

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FREE: Final = frozenset({"CLIDR_EL1"})
"""Registers that take any value: they describe caches, and bind nobody (set_clidr)."""

IMPLEMENTATION: Final = ("MIDR_EL1", "REVIDR_EL1", "AIDR_EL1")
"""Which CPU it is. KVM lets userspace choose with KVM_CAP_ARM_WRITABLE_IMP_ID_REGS only."""


class Kind(Enum):
    """Which of a field's values describe a CPU that can do no more."""

    LOWER_SAFE = "lower values are safe"
    HIGHER_SAFE = "higher values are safe"
    HIGHER_OR_ZERO_SAFE = "higher values and zero are safe"
    EXACT = "only the same value is safe"


@dataclass(frozen=True)
class Field:
    """A field: bits [shift, shift + width). *safe*: what EXACT takes besides. *least*: see KVM."""

    name: str
    shift: int
    width: int = 4
    kind: Kind = Kind.LOWER_SAFE
    signed: bool = False
    safe: int = 0
    least: int | None = None

    @property
    def mask(self) -> int:
        """The field's bits in the register."""
        return ((1 << self.width) - 1) << self.shift

    def get(self, register: int) -> int:
        """Return the field's value in *register*, a signed one sign-extended."""
        value = (register & self.mask) >> self.shift
        return value - (1 << self.width) if self.signed and value >> (self.width - 1) else value

    def put(self, register: int, value: int) -> int:
        """Return *register* with *value* in the field."""
        return register & ~self.mask | value << self.shift & self.mask

    def safe_of(self, one: int, other: int) -> int:
        """Return the value that is safe where one CPU has *one* and another has *other*."""
        if one == other:
            return one
        if self.kind is Kind.EXACT:
            return self.safe
        if self.kind is Kind.LOWER_SAFE:
            return min(one, other)
        if self.kind is Kind.HIGHER_OR_ZERO_SAFE and not (one and other):
            return 0
        return max(one, other)

    def takes(self, value: int, limit: int) -> bool:
        """Return whether KVM takes *value* where the host's is *limit*, if the field is writable.

        The minimum is asked of a value that changes nothing as well, as KVM does.
        """
        if self.least is not None and value < self.least:
            return False
        return self.safe_of(value, limit) == value


@dataclass(frozen=True)
class IdRegister:
    """An ID register. *id*: for KVM_GET_ONE_REG. *fields*: those that Linux knows."""

    name: str
    id: int
    fields: tuple[Field, ...] = ()

    @property
    def index(self) -> int:
        """Its place in the array of KVM_ARM_GET_REG_WRITABLE_MASKS."""
        op1 = self.id >> lib.KVM_REG_ARM64_SYSREG_OP1_SHIFT & 7
        return OP1.index(op1) << 6 | self.id & 0x3F

    def refused(self, value: int, limit: int, writable: int) -> int:
        """Return the bits of *value* that KVM refuses where the host's register is *limit*.

        *writable* is the register's mask. Bits that are not writable, or of no field that Linux
        knows, must be the host's.
        """
        if self.name in FREE and writable:
            return 0
        bits = value ^ limit
        for field in self.fields:
            if field.mask & ~writable:
                continue
            taken = field.takes(field.get(value), field.get(limit))
            bits = bits & ~field.mask | (0 if taken else field.mask)
        return bits

    def common(self, values: Iterable[int], writable: int) -> int:
        """Return a value that is safe for CPUs with *values*; the first's where there is none.

        Only *writable* bits, those which every host lets userspace write, differ from the first's.
        """
        first, *rest = values
        result = first
        for field in self.fields:
            if field.mask & ~writable:
                continue
            safe = field.get(first)
            for value in rest:
                safe = field.safe_of(safe, field.get(value))
            result = field.put(result, safe)
        return result

    def names(self, bits: int) -> list[str]:
        """Return the names of the fields that have any of *bits*, then the bits of no field."""
        found = []
        for field in self.fields:
            if bits & field.mask:
                found.append(f"{self.name}.{field.name}")
                bits &= ~field.mask
        return [*found, *([f"{self.name} bits {bits:#x}"] if bits else [])]


OP1: Final = (0, 1, 3)
"""The values of op1 in KVM's feature ID range, in the order of its masks."""

_LINE: Final = re.compile(r"(\w+):((?: [^\n]*(?:\n    [^\n]*)*)?)")
_FIELD: Final = re.compile(r"(\w+) (\d+)(?::(\d+))?(-?)(\^0|\^|=(\d+))?(?:>(\d+))?")


@cache
def id_registers() -> Mapping[str, IdRegister]:
    """Return every register of KVM's feature ID range, by name, in that order.

    MPIDR_EL1 is left out: each vCPU has its own.
    """
    fields = {
        line[1]: tuple(map(_field, _FIELD.finditer(line[2]))) for line in _LINE.finditer(TABLE)
    }
    every = (system(3, op1, 0, crm, op2) for op1 in OP1 for crm in range(8) for op2 in range(8))
    return {
        (name := name_of(one)): IdRegister(name, one, fields.get(name, ()))
        for one in every
        if one != registers.MPIDR_EL1
    }


def field_of(register: str, name: str) -> Field:
    """Return a field of an ID register. Raises StopIteration: it has no such field."""
    return next(one for one in id_registers()[register].fields if one.name == name)


def _field(text: re.Match[str]) -> Field:
    name, shift, width, sign, kind, safe, least = text.groups()
    kinds = {"^": Kind.HIGHER_SAFE, "^0": Kind.HIGHER_OR_ZERO_SAFE, None: Kind.LOWER_SAFE}
    return Field(
        name,
        int(shift),
        int(width or 4),
        kinds.get(kind, Kind.EXACT),
        bool(sign),
        int(safe or 0),
        None if least is None else int(least),
    )
