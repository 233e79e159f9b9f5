"""A BRK that is the guest's own enters the guest's handler as the CPU would have."""

from __future__ import annotations

import pytest

from vmm.arm64.exception_entry import take_synchronous
from vmm.arm64.register_names import id_of

VBAR = 0xFFFF_8000_8001_0800
ESR = 0xF200_0800


class Registers(dict[int, int]):
    """A vCPU's registers, all 0 unless given."""

    def get_one_reg(self, register: int, /) -> int:
        return self.get(register, 0)

    def set_one_reg(self, register: int, value: int, /) -> None:
        self[register] = value

    def __getattr__(self, name: str) -> int:
        return self.get_one_reg(id_of(name))


def after(pstate: int, **values: int) -> Registers:
    """Return the registers of a vCPU that was at 0x1234 after the exception."""
    vcpu = Registers({id_of(name): value for name, value in values.items()})
    vcpu.set_one_reg(id_of("pc"), 0x1234)
    vcpu.set_one_reg(id_of("pstate"), pstate)
    vcpu.set_one_reg(id_of("VBAR_EL1"), VBAR)
    take_synchronous(vcpu, ESR)
    return vcpu


@pytest.mark.parametrize(
    ("pstate", "offset"), [(0x6000_0000, 0x400), (0x6000_0004, 0), (0x6000_0005, 0x200)]
)
def test_the_vector_goes_by_where_it_came_from(pstate: int, offset: int) -> None:
    vcpu = after(pstate)
    assert vcpu.pc == VBAR + offset
    assert (0x1234, pstate, ESR) == (vcpu.ELR_EL1, vcpu.SPSR_EL1, vcpu.ESR_EL1)


def test_the_handler_runs_at_el1_with_exceptions_masked() -> None:
    assert after(0x8000_0000).pstate == 0x8000_03C5


def test_uao_and_btype_are_cleared_and_dit_is_kept() -> None:
    assert after(1 << 23 | 3 << 10 | 1 << 24).pstate == 1 << 24 | 0x3C5


@pytest.mark.parametrize(("sctlr", "pan"), [(0, 1), (1 << 23, 0)])
def test_pan_is_set_unless_sctlr_span_says_not(sctlr: int, pan: int) -> None:
    assert after(0, SCTLR_EL1=sctlr, ID_AA64MMFR1_EL1=1 << 20).pstate >> 22 & 1 == pan


def test_pan_stays_set_and_is_not_set_where_it_does_not_exist() -> None:
    assert after(1 << 22, SCTLR_EL1=1 << 23).pstate >> 22 & 1 == 1
    assert after(0).pstate >> 22 & 1 == 0


def test_mte_and_ssbs_are_as_the_cpu_has_them() -> None:
    assert after(0, ID_AA64PFR1_EL1=2 << 8).pstate >> 25 & 1 == 1
    assert after(0, SCTLR_EL1=1 << 44).pstate >> 12 & 1 == 1
    assert after(1 << 12).pstate >> 12 & 1 == 0
