"""A vCPU's registers by the names that gdb has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.arm64 import translation
from vmm.arm64.register_names import id_of
from vmm.debug.description import PAUTH, Description

if TYPE_CHECKING:
    from vmm.kvm.vcpu import Vcpu

_SP_SEL: Final = 1
_EL: Final = 3 << 2
_BIT_55: Final = 1 << 55
_ALL: Final = (1 << 64) - 1

_RENAMED: Final = {"cpsr": "pstate", "SP_EL0": "sp", "ffr": "FFR"}
"""gdb's names for what register_names calls something else."""


class Registers:
    """The registers of *vcpu*, which must be out of the guest."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.available = frozenset(vcpu.get_reg_list())
        self.vector_length = self._vector_length()
        self.signs_pointers = id_of("APIAKeyLo_EL1") in self.available

    def _vector_length(self) -> int:
        """Return the bytes of the longest SVE vector; 0: there is no SVE."""
        lengths = id_of("SVE_VLS")
        if lengths not in self.available:
            return 0
        return 16 * self._vcpu.get_one_reg(lengths).bit_length()

    def describe(self) -> Description:
        """Return what gdb is told about them."""
        return Description(self.available, self.vector_length, pauth=self.signs_pointers)

    def get(self, name: str, size: int) -> bytes:
        """Return register *name* as *size* bytes, little-endian. Raises `KvmError`."""
        if name in PAUTH:
            value = self._mask(high=name.endswith("high"))
        elif name == "vg":
            value = self.vector_length // 8
        else:
            value = self._vcpu.get_one_reg(self._id(name))
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def set(self, name: str, data: bytes) -> None:
        """Set register *name*. Raises `KvmError`; ValueError if it is no real register."""
        if name in PAUTH or name == "vg":
            raise ValueError(f"{name} cannot be set")
        self._vcpu.set_one_reg(self._id(name), int.from_bytes(data, "little"))

    def _id(self, name: str) -> int:
        """Return the id of *name*; ``sp`` is the stack pointer that PSTATE selects."""
        if name == "sp":
            pstate = self._vcpu.get_one_reg(id_of("pstate"))
            return id_of("SP_EL1" if pstate & _SP_SEL and pstate & _EL else "sp")
        if self.vector_length and name[0] in "zp" and name[1:].isdigit():
            return id_of(name.upper())
        return id_of(_RENAMED.get(name, name))

    def _mask(self, *, high: bool) -> int:
        """Return the bits of an address that are no address: for the upper half, or the lower."""
        tcr = self._vcpu.get_one_reg(id_of("TCR_EL1"))
        bits = 64 - (tcr >> (16 if high else 0) & 63)
        return _ALL & ~((1 << bits) - 1) & ~_BIT_55

    def code_address(self, value: int) -> int:
        """Return *value* without the signature that a signed return address has."""
        mask = self._mask(high=bool(value & _BIT_55))
        return value | mask if value & _BIT_55 else value & ~mask

    def regime(self) -> translation.Regime:
        """Return the registers of stage 1. Raises `KvmError`."""
        return translation.regime(self._vcpu.get_one_reg)

    @property
    def pc(self) -> int:
        """The program counter."""
        return self._vcpu.get_one_reg(id_of("pc"))

    def is_off(self) -> bool:
        """Return whether the vCPU waits for PSCI CPU_ON. Raises `KvmError`."""
        return self._vcpu.get_mp_state() == lib.KVM_MP_STATE_STOPPED
