"""Names of registers as the Arm ARM has them, and their ids for KVM: a bijection.

    x0 sp pc pstate v0 fpcr        general-purpose and floating-point registers
    SCTLR_EL1                      a system register that the table below names
    S3_0_C1_C0_5                   any other one, as assemblers accept it (Arm ARM C5.1.2)
    CCSIDR[0]                      one that an index selects (KVM_REG_ARM_DEMUX)
    Z0 P0 FFR SVE_VLS              SVE, and KVM's own set of vector lengths
    FW[0] FW_BITMAP[0]             KVM's pseudo-registers for firmware (fw-pseudo-registers.rst)
    0x6030...                      what none of this fits

Source: Documentation/virt/kvm/api.rst, section 4.68; Arm ARM D19 for the encodings.
"""

from __future__ import annotations

import re
from typing import Final

from vmm._native import ffi, lib

_CORE_SPSR: Final = ("SPSR_EL1", "SPSR_abt", "SPSR_und", "SPSR_irq", "SPSR_fiq")

_CRM_NAMES: Final = {
    1: "ID_PFR0 ID_PFR1 ID_DFR0 ID_AFR0 ID_MMFR0 ID_MMFR1 ID_MMFR2 ID_MMFR3",
    2: "ID_ISAR0 ID_ISAR1 ID_ISAR2 ID_ISAR3 ID_ISAR4 ID_ISAR5 ID_MMFR4 ID_ISAR6",
    3: "MVFR0 MVFR1 MVFR2 - ID_PFR2 ID_DFR1 ID_MMFR5 -",
    4: "ID_AA64PFR0 ID_AA64PFR1 ID_AA64PFR2 - ID_AA64ZFR0 ID_AA64SMFR0 - ID_AA64FPFR0",
    5: "ID_AA64DFR0 ID_AA64DFR1 ID_AA64DFR2 - ID_AA64AFR0 ID_AA64AFR1 - -",
    6: "ID_AA64ISAR0 ID_AA64ISAR1 ID_AA64ISAR2 ID_AA64ISAR3 - - - -",
    7: "ID_AA64MMFR0 ID_AA64MMFR1 ID_AA64MMFR2 ID_AA64MMFR3 ID_AA64MMFR4 - - -",
}
"""The ID registers S3_0_C0_C<key>_0 to 7, without their suffix _EL1."""

_SYSTEM: Final = {
    "MDCCINT_EL1": (2, 0, 0, 2, 0),
    "MDSCR_EL1": (2, 0, 0, 2, 2),
    "OSLSR_EL1": (2, 0, 1, 1, 4),
    "OSDLR_EL1": (2, 0, 1, 3, 4),
    "DBGVCR32_EL2": (2, 4, 0, 7, 0),
    "MIDR_EL1": (3, 0, 0, 0, 0),
    "MPIDR_EL1": (3, 0, 0, 0, 5),
    "REVIDR_EL1": (3, 0, 0, 0, 6),
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "ACTLR_EL1": (3, 0, 1, 0, 1),
    "CPACR_EL1": (3, 0, 1, 0, 2),
    "SCTLR2_EL1": (3, 0, 1, 0, 3),
    "ZCR_EL1": (3, 0, 1, 2, 0),
    "TTBR0_EL1": (3, 0, 2, 0, 0),
    "TTBR1_EL1": (3, 0, 2, 0, 1),
    "TCR_EL1": (3, 0, 2, 0, 2),
    "TCR2_EL1": (3, 0, 2, 0, 3),
    "APIAKeyLo_EL1": (3, 0, 2, 1, 0),
    "APIAKeyHi_EL1": (3, 0, 2, 1, 1),
    "APIBKeyLo_EL1": (3, 0, 2, 1, 2),
    "APIBKeyHi_EL1": (3, 0, 2, 1, 3),
    "APDAKeyLo_EL1": (3, 0, 2, 2, 0),
    "APDAKeyHi_EL1": (3, 0, 2, 2, 1),
    "APDBKeyLo_EL1": (3, 0, 2, 2, 2),
    "APDBKeyHi_EL1": (3, 0, 2, 2, 3),
    "APGAKeyLo_EL1": (3, 0, 2, 3, 0),
    "APGAKeyHi_EL1": (3, 0, 2, 3, 1),
    "AFSR0_EL1": (3, 0, 5, 1, 0),
    "AFSR1_EL1": (3, 0, 5, 1, 1),
    "ESR_EL1": (3, 0, 5, 2, 0),
    "FAR_EL1": (3, 0, 6, 0, 0),
    "PAR_EL1": (3, 0, 7, 4, 0),
    "PMINTENSET_EL1": (3, 0, 9, 14, 1),
    "PMINTENCLR_EL1": (3, 0, 9, 14, 2),
    "MAIR_EL1": (3, 0, 10, 2, 0),
    "PIRE0_EL1": (3, 0, 10, 2, 2),
    "PIR_EL1": (3, 0, 10, 2, 3),
    "POR_EL1": (3, 0, 10, 2, 4),
    "AMAIR_EL1": (3, 0, 10, 3, 0),
    "VBAR_EL1": (3, 0, 12, 0, 0),
    "DISR_EL1": (3, 0, 12, 1, 1),
    "CONTEXTIDR_EL1": (3, 0, 13, 0, 1),
    "TPIDR_EL1": (3, 0, 13, 0, 4),
    "CNTKCTL_EL1": (3, 0, 14, 1, 0),
    "CLIDR_EL1": (3, 1, 0, 0, 1),
    "AIDR_EL1": (3, 1, 0, 0, 7),
    "CSSELR_EL1": (3, 2, 0, 0, 0),
    "CTR_EL0": (3, 3, 0, 0, 1),
    "DCZID_EL0": (3, 3, 0, 0, 7),
    "FPMR": (3, 3, 4, 4, 2),
    "PMCR_EL0": (3, 3, 9, 12, 0),
    "PMCNTENSET_EL0": (3, 3, 9, 12, 1),
    "PMCNTENCLR_EL0": (3, 3, 9, 12, 2),
    "PMOVSCLR_EL0": (3, 3, 9, 12, 3),
    "PMSELR_EL0": (3, 3, 9, 12, 5),
    "PMCCNTR_EL0": (3, 3, 9, 13, 0),
    "PMUSERENR_EL0": (3, 3, 9, 14, 0),
    "PMOVSSET_EL0": (3, 3, 9, 14, 3),
    "POR_EL0": (3, 3, 10, 2, 4),
    "TPIDR_EL0": (3, 3, 13, 0, 2),
    "TPIDRRO_EL0": (3, 3, 13, 0, 3),
    "SCXTNUM_EL0": (3, 3, 13, 0, 7),
    "CNTFRQ_EL0": (3, 3, 14, 0, 0),
    "CNTPCT_EL0": (3, 3, 14, 0, 1),
    "CNTP_CTL_EL0": (3, 3, 14, 2, 1),
    "CNTP_CVAL_EL0": (3, 3, 14, 2, 2),
    "CNTV_CTL_EL0": (3, 3, 14, 3, 1),
    # KVM_REG_ARM_TIMER_CVAL and KVM_REG_ARM_TIMER_CNT: each has the encoding of the other.
    "CNTV_CVAL_EL0": (3, 3, 14, 0, 2),
    "CNTVCT_EL0": (3, 3, 14, 3, 2),
    "PMCCFILTR_EL0": (3, 3, 14, 15, 7),
    "DACR32_EL2": (3, 4, 3, 0, 0),
    "IFSR32_EL2": (3, 4, 5, 0, 1),
    "FPEXC32_EL2": (3, 4, 5, 3, 0),
}
"""System registers by name: op0, op1, CRn, CRm, op2 of the id that KVM gives them."""


def system(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the id of the system register S<op0>_<op1>_C<crn>_C<crm>_<op2>."""
    register: int = (
        lib.KVM_REG_ARM64
        | lib.KVM_REG_SIZE_U64
        | lib.KVM_REG_ARM64_SYSREG
        | op0 << lib.KVM_REG_ARM64_SYSREG_OP0_SHIFT
        | op1 << lib.KVM_REG_ARM64_SYSREG_OP1_SHIFT
        | crn << lib.KVM_REG_ARM64_SYSREG_CRN_SHIFT
        | crm << lib.KVM_REG_ARM64_SYSREG_CRM_SHIFT
        | op2 << lib.KVM_REG_ARM64_SYSREG_OP2_SHIFT
    )
    return register


def core(*field: str | int, size: int = 8) -> int:
    """Return the id of a core register of *size* bytes: a member of ``struct kvm_regs``."""
    return _id(lib.KVM_REG_ARM_CORE, size, ffi.offsetof("struct pyvmm_arm64_regs", *field) // 4)


def _id(group: int, size: int, number: int) -> int:
    bits = (size.bit_length() - 1) << lib.KVM_REG_SIZE_SHIFT
    register: int = lib.KVM_REG_ARM64 | bits | group | number
    return register


def _table() -> dict[str, int]:
    fp = ffi.offsetof("struct pyvmm_arm64_regs", "fp")
    fpsimd = "struct pyvmm_arm64_fpsimd"

    def vector(*field: str | int, size: int) -> int:
        return _id(lib.KVM_REG_ARM_CORE, size, (fp + ffi.offsetof(fpsimd, *field)) // 4)

    named = {f"x{number}": core("x", number) for number in range(31)}
    named |= {name: core(name) for name in ("sp", "pc", "pstate")}
    named |= {"SP_EL1": core("sp_el1"), "ELR_EL1": core("elr_el1")}
    named |= {name: core("spsr", number) for number, name in enumerate(_CORE_SPSR)}
    named |= {f"v{number}": vector("v", number, size=16) for number in range(32)}
    named |= {name: vector(name, size=4) for name in ("fpsr", "fpcr")}
    for crm, names in _CRM_NAMES.items():
        for op2, name in enumerate(names.split()):
            if name != "-":
                named[f"{name}_EL1"] = system(3, 0, 0, crm, op2)
    for kind, op2 in (("BVR", 4), ("BCR", 5), ("WVR", 6), ("WCR", 7)):
        named |= {f"DBG{kind}{n}_EL1": system(2, 0, 0, n, op2) for n in range(16)}
    for kind, crm in (("CNTR", 8), ("TYPER", 12)):
        named |= {f"PMEV{kind}{n}_EL0": system(3, 3, 14, crm + n // 8, n % 8) for n in range(31)}
    named |= {name: system(*encoding) for name, encoding in _SYSTEM.items()}
    sve = lib.KVM_REG_ARM64_SVE
    # KVM_REG_ARM64_SVE_ZREG and its like: number << 5 in each range, slice 0 of 32.
    named |= {f"Z{number}": _id(sve, 256, number << 5) for number in range(32)}
    named |= {f"P{number}": _id(sve, 32, 0x400 | number << 5) for number in range(16)}
    named |= {"FFR": _id(sve, 32, 0x600), "SVE_VLS": _id(sve, 64, 0xFFFF)}
    named |= {f"CCSIDR[{number}]": _id(lib.KVM_REG_ARM_DEMUX, 4, number) for number in range(14)}
    named |= {f"FW[{number}]": _id(lib.KVM_REG_ARM_FW, 8, number) for number in range(16)}
    bitmap = lib.KVM_REG_ARM_FW_FEAT_BMAP
    return named | {f"FW_BITMAP[{number}]": _id(bitmap, 8, number) for number in range(16)}


BY_NAME: Final[dict[str, int]] = _table()
"""The id of each register that has a name of its own."""

_BY_ID: Final = {register: name for name, register in BY_NAME.items()}
_GENERIC: Final = re.compile(r"S([23])_([0-7])_C(\d|1[0-5])_C(\d|1[0-5])_([0-7])", re.ASCII)
_NUMBER: Final = re.compile(r"0x[0-9a-f]{1,16}")


def name_of(register: int) -> str:
    """Return the name of the register with id *register*, KVM_REG_*."""
    if (known := _BY_ID.get(register)) is not None:
        return known
    if register & ~0xFFFF == system(0, 0, 0, 0, 0) and register >> 14 & 2:
        op0, op1, crn = register >> 14 & 3, register >> 11 & 7, register >> 7 & 15
        return f"S{op0}_{op1}_C{crn}_C{register >> 3 & 15}_{register & 7}"
    return f"{register:#x}"


def id_of(name: str) -> int:
    """Return the id of the register called *name*, in a spelling that `name_of` returns.

    Raises ValueError.
    """
    if (known := BY_NAME.get(name)) is not None:
        return known
    if match := _GENERIC.fullmatch(name):
        return system(*map(int, match.groups()))
    if _NUMBER.fullmatch(name):
        return int(name, 16)
    raise ValueError(f"{name}: no register has that name")
