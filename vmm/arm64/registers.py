"""Register ids for KVM_GET_ONE_REG and KVM_SET_ONE_REG.

Source: Documentation/virt/kvm/api.rst, section 4.68; Arm ARM D19 for the encodings.
"""

from __future__ import annotations

from typing import Final

from vmm._native import ffi, lib

_CORE: Final[int] = lib.KVM_REG_ARM64 | lib.KVM_REG_SIZE_U64 | lib.KVM_REG_ARM_CORE
_SYSTEM: Final[int] = lib.KVM_REG_ARM64 | lib.KVM_REG_SIZE_U64 | lib.KVM_REG_ARM64_SYSREG


def core(*field: str | int) -> int:
    """Return the id of a core register: a member of ``struct kvm_regs``, in 32-bit units."""
    return _CORE | ffi.offsetof("struct pyvmm_arm64_regs", *field) // 4


def system(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the id of the system register S<op0>_<op1>_C<crn>_C<crm>_<op2>."""
    register: int = (
        _SYSTEM
        | op0 << lib.KVM_REG_ARM64_SYSREG_OP0_SHIFT
        | op1 << lib.KVM_REG_ARM64_SYSREG_OP1_SHIFT
        | crn << lib.KVM_REG_ARM64_SYSREG_CRN_SHIFT
        | crm << lib.KVM_REG_ARM64_SYSREG_CRM_SHIFT
        | op2 << lib.KVM_REG_ARM64_SYSREG_OP2_SHIFT
    )
    return register


def x(number: int) -> int:
    """Return the id of general-purpose register X<number>, 0 to 30."""
    return core("x", number)


PC: Final = core("pc")
PSTATE: Final = core("pstate")
SP_EL1: Final = core("sp_el1")
ELR_EL1: Final = core("elr_el1")

MPIDR_EL1: Final = system(3, 0, 0, 0, 5)
ID_AA64MMFR0_EL1: Final = system(3, 0, 0, 7, 0)
ID_AA64MMFR2_EL1: Final = system(3, 0, 0, 7, 2)
CTR_EL0: Final = system(3, 3, 0, 0, 1)
SCTLR_EL1: Final = system(3, 0, 1, 0, 0)
TTBR0_EL1: Final = system(3, 0, 2, 0, 0)
TCR_EL1: Final = system(3, 0, 2, 0, 2)
MAIR_EL1: Final = system(3, 0, 10, 2, 0)
VBAR_EL1: Final = system(3, 0, 12, 0, 0)

MPIDR_AFFINITY: Final = 0xFF_00FF_FFFF
"""Aff3, Aff2, Aff1 and Aff0: ``reg`` of a device tree's cpu node."""
