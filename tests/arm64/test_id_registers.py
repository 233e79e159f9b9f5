"""Which values of ID registers KVM takes, by the model that `pyvmm compat` decides with."""

from __future__ import annotations

import pytest

from vmm.arm64.id_registers import Field, IdRegister, Kind, id_registers

FWB = 1 << 40
ALL = (1 << 64) - 1


def test_the_range_is_kvms() -> None:
    every = id_registers()
    assert len(every) == 3 * 8 * 8 - 1
    assert "MPIDR_EL1" not in every
    assert sorted(one.index for one in every.values()) == [n for n in range(192) if n != 5]


def test_registers_have_the_ids_of_kvm() -> None:
    assert id_registers()["ID_AA64MMFR2_EL1"].id == 0x6030_0000_0013_C03A
    assert id_registers()["CTR_EL0"].id == 0x6030_0000_0013_D801
    assert id_registers()["S3_0_C0_C7_7"].id == 0x6030_0000_0013_C03F


@pytest.mark.parametrize(("value", "limit"), [(0, FWB), (FWB, 0)])
def test_a_field_that_is_not_writable_must_be_the_hosts_either_way(value: int, limit: int) -> None:
    mmfr2 = id_registers()["ID_AA64MMFR2_EL1"]
    refused = mmfr2.refused(value, limit, ALL & ~(0xF << 40))
    assert mmfr2.names(refused) == ["ID_AA64MMFR2_EL1.FWB"]


def test_bits_of_no_field_must_be_the_hosts_though_the_mask_has_them() -> None:
    isar3 = id_registers()["ID_AA64ISAR3_EL1"]
    assert isar3.names(isar3.refused(1 << 40, 0, ALL)) == ["ID_AA64ISAR3_EL1 bits 0x10000000000"]


def field(register: str, name: str) -> Field:
    return next(one for one in id_registers()[register].fields if one.name == name)


def test_a_signed_field_goes_below_zero() -> None:
    """ID_AA64PFR0_EL1.FP: 0b1111, no floating point, is less than 0."""
    fp = field("ID_AA64PFR0_EL1", "FP")
    assert fp.get(0xF << 16) == -1
    assert fp.takes(-1, 1)
    assert not fp.takes(1, -1)
    assert fp.put(0, -1) == 0xF << 16


@pytest.mark.parametrize(
    ("register", "name", "value", "limit", "taken"),
    [
        ("ID_AA64ISAR0_EL1", "RNDR", 0, 1, True),
        ("ID_AA64ISAR0_EL1", "RNDR", 1, 0, False),
        ("ID_AA64MMFR1_EL1", "SpecSEI", 1, 0, True),
        ("ID_AA64MMFR1_EL1", "SpecSEI", 0, 1, False),
        ("CTR_EL0", "CWG", 0, 4, True),
        ("CTR_EL0", "CWG", 5, 4, True),
        ("CTR_EL0", "CWG", 3, 4, False),
        ("CTR_EL0", "CWG", 3, 0, False),
        ("CTR_EL0", "L1Ip", 2, 3, True),
        ("CTR_EL0", "L1Ip", 3, 2, False),
        ("CTR_EL0", "L1Ip", 1, 1, False),
        ("ID_AA64MMFR0_EL1", "TGRAN4_2", 1, 3, True),
        ("ID_AA64MMFR0_EL1", "TGRAN4_2", 2, 3, False),
        ("ID_AA64DFR0_EL1", "DebugVer", 6, 10, True),
        ("ID_AA64DFR0_EL1", "DebugVer", 5, 10, False),
        ("ID_AA64PFR0_EL1", "EL0", 1, 2, True),
        ("ID_AA64PFR0_EL1", "EL0", 0, 2, False),
    ],
)
def test_what_is_no_more_depends_on_the_field(
    register: str, name: str, value: int, limit: int, *, taken: bool
) -> None:
    one = field(register, name)
    assert one.takes(value, limit) is taken
    refused = id_registers()[register].refused(one.put(0, value), one.put(0, limit), one.mask)
    assert bool(refused) is not taken


def test_a_common_value_changes_no_bit_that_is_not_writable() -> None:
    low, high = Field("LOW", 0), Field("HIGH", 4, kind=Kind.HIGHER_SAFE)
    register = IdRegister("TEST", 0, (low, high))
    assert register.common([0x23, 0x51], 0xFF) == 0x51
    assert register.common([0x23, 0x51], 0x0F) == 0x21
    assert register.common([0x23, 0x51, 0x42], 0xF0) == 0x53


def test_a_common_value_is_taken_by_all() -> None:
    for register in id_registers().values():
        values = [0x1122_1021_1166_A266, 0x3311_2011_2666_B167, 0x2233_0000_3666_C368]
        common = register.common(values, ALL)
        writable = sum(one.mask for one in register.fields)
        for value in values:
            limit = value & writable | common & ~writable
            bits = register.refused(common, limit, ALL)
            assert not bits, register.names(bits)


def test_caches_that_are_described_bind_nobody() -> None:
    assert not id_registers()["CLIDR_EL1"].refused(0x123, 0x456, ALL)
    assert id_registers()["CLIDR_EL1"].refused(0x123, 0x456, 0)
