"""Names of registers and ids for KVM are a bijection, and are those of the kernel's header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm._native import lib
from vmm.arm64.register_names import BY_NAME, id_of, name_of, system


@given(st.tuples(*(st.integers(0, most) for most in (1, 7, 15, 15, 7))))
def test_each_system_register_has_one_name(encoding: tuple[int, int, int, int, int]) -> None:
    register = system(encoding[0] + 2, *encoding[1:])
    assert id_of(name_of(register)) == register


@given(st.integers(0, (1 << 64) - 1))
def test_each_id_comes_back(register: int) -> None:
    assert id_of(name_of(register)) == register


def test_no_two_names_have_one_id() -> None:
    assert len(set(BY_NAME.values())) == len(BY_NAME)
    assert all(name_of(register) == name for name, register in BY_NAME.items())


@pytest.mark.parametrize(
    ("name", "register"),
    [
        ("x0", 0x6030_0000_0010_0000),
        ("pc", 0x6030_0000_0010_0040),
        ("v31", 0x6040_0000_0010_00D0),
        ("fpsr", 0x6020_0000_0010_00D4),
        ("SCTLR_EL1", 0x6030_0000_0013_C080),
        ("S3_0_C1_C0_5", 0x6030_0000_0013_C085),
        ("CNTVCT_EL0", 0x6030_0000_0013_DF1A),  # KVM_REG_ARM_TIMER_CNT, swapped with the next
        ("CNTV_CVAL_EL0", 0x6030_0000_0013_DF02),  # KVM_REG_ARM_TIMER_CVAL
        ("Z1", 0x6080_0000_0015_0020),  # KVM_REG_ARM64_SVE_ZREG(1, 0)
        ("P1", 0x6050_0000_0015_0420),
        ("FFR", 0x6050_0000_0015_0600),
        ("SVE_VLS", 0x6060_0000_0015_FFFF),
        ("FW[1]", 0x6030_0000_0014_0001),  # KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1
        ("FW_BITMAP[0]", 0x6030_0000_0016_0000),  # KVM_REG_ARM_STD_BMAP
        ("CCSIDR[2]", 0x6020_0000_0011_0002),
    ],
)
def test_an_id_is_that_of_the_header(name: str, register: int) -> None:
    """Numbers from arch/arm64/include/uapi/asm/kvm.h."""
    assert (id_of(name), name_of(register)) == (register, name)
    assert register & lib.KVM_REG_ARM64


@pytest.mark.parametrize("name", ["", "x31", "S1_0_C1_C0_5", "S3_0_C16_C0_0", "0x", "PC"])
def test_no_register_has_another_name(name: str) -> None:
    with pytest.raises(ValueError, match="no register has that name"):
        id_of(name)
