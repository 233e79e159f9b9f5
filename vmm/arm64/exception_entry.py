"""Take an exception to EL1 in a vCPU's registers: what the CPU does, done by hand.

KVM_GUESTDBG_USE_SW_BP takes every BRK from a guest. One that no debugger has set is the guest's
own, and the guest is owed its exception.
Source: Arm ARM D1.3 (exception entry), J1 (AArch64.TakeException).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from vmm.arm64.register_names import id_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_EL1H: Final = 0b0101
_DAIF: Final = 0xF << 6
_KEPT: Final = 0xF << 28 | 1 << 24
"""NZCV and DIT. SS is the debugger's, UAO and BTYPE become 0."""
_PAN: Final = 1 << 22
_TCO: Final = 1 << 25
_SSBS: Final = 1 << 12
_SCTLR_SPAN: Final = 1 << 23
_SCTLR_DSSBS: Final = 1 << 44

_VECTORS: Final = {0: 0x400, 1: 0x000, 2: 0x200}
"""Offsets of synchronous exceptions: from EL0, from EL1 with SP_EL0, from EL1 with SP_EL1."""

_MTE_FIELD: Final = 8
_PAN_FIELD: Final = 20
"""ID_AA64PFR1_EL1.MTE and ID_AA64MMFR1_EL1.PAN: their lowest bits."""

_MTE_2: Final = 2
"""The least value of MTE with which there is PSTATE.TCO."""


class Registers(Protocol):
    """The part of a vCPU that has its registers."""

    def get_one_reg(self, register: int, /) -> int:
        """Return a register."""

    def set_one_reg(self, register: int, value: int, /) -> None:
        """Set a register."""


def take_synchronous(vcpu: Registers, esr: int) -> None:
    """Enter the guest's handler for an exception of the instruction at PC, with syndrome *esr*."""

    def get(name: str) -> int:
        return vcpu.get_one_reg(id_of(name))

    pstate, sctlr = get("pstate"), get("SCTLR_EL1")
    level = pstate >> 2 & 3
    source = 0 if level == 0 else 1 + (pstate & 1)
    new = pstate & _KEPT | _DAIF | _EL1H
    new |= pstate & _PAN
    if get("ID_AA64MMFR1_EL1") >> _PAN_FIELD & 15 and not sctlr & _SCTLR_SPAN:
        new |= _PAN
    if get("ID_AA64PFR1_EL1") >> _MTE_FIELD & 15 >= _MTE_2:
        new |= _TCO
    if sctlr & _SCTLR_DSSBS:
        new |= _SSBS
    values: Mapping[str, int] = {
        "ELR_EL1": get("pc"),
        "SPSR_EL1": pstate,
        "ESR_EL1": esr,
        "pc": get("VBAR_EL1") + _VECTORS[source],
        "pstate": new,
    }
    for name, value in values.items():
        vcpu.set_one_reg(id_of(name), value)
