"""Register ids for KVM_GET_ONE_REG and KVM_SET_ONE_REG that pyvmm itself uses.

`vmm.arm64.register_names` has all others, by name.
"""

from __future__ import annotations

from typing import Final

from vmm.arm64.register_names import core, id_of, system


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

FIRMWARE: Final = {
    "PSCI_VERSION": id_of("FW[0]"),
    "SMCCC_ARCH_WORKAROUND_1": id_of("FW[1]"),
    "SMCCC_ARCH_WORKAROUND_2": id_of("FW[2]"),
    "SMCCC_ARCH_WORKAROUND_3": id_of("FW[3]"),
    "STD_BMAP": id_of("FW_BITMAP[0]"),
    "STD_HYP_BMAP": id_of("FW_BITMAP[1]"),
    "VENDOR_HYP_BMAP": id_of("FW_BITMAP[2]"),
    "VENDOR_HYP_BMAP_2": id_of("FW_BITMAP[3]"),
}
"""Firmware pseudo-registers, KVM_REG_ARM_*: which PSCI and which hypercalls a guest finds.

Source: Documentation/virt/kvm/arm/fw-pseudo-registers.rst.
"""

SVE_VECTOR_LENGTHS: Final = id_of("SVE_VLS")
"""KVM_REG_ARM64_SVE_VLS: bit n stands for vectors of n + 1 quadwords, which have 16 bytes."""

MPIDR_AFFINITY: Final = 0xFF_00FF_FFFF
"""Aff3, Aff2, Aff1 and Aff0: ``reg`` of a device tree's cpu node."""
