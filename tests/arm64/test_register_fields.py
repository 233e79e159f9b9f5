"""Registers' fields."""

from __future__ import annotations

import pytest

from vmm.arm64 import register_fields
from vmm.arm64.register_fields import fields
from vmm.arm64.register_names import BY_NAME


@pytest.mark.parametrize(
    ("esr", "words"),
    [
        (0x96000005, {"EC": 0x25, "IL": 1, "ISS": 5, "fault": "translation fault, level 1"}),
        (0x96000010, {"class": "data abort from EL1", "fault": "synchronous external abort"}),
        (0x8600000F, {"class": "instruction abort from EL1", "fault": "permission fault, level 3"}),
        (0x96000061, {"ISS": 0x61, "fault": "alignment fault"}),
        (0x9600003F, {"fault": "fault status 0x3f"}),
        (0xF2000800, {"class": "BRK", "ISS": 0x800}),
        (0xFC000000, {"class": "class 0x3f"}),
    ],
)
def test_a_syndrome_is_told_in_words(esr: int, words: dict[str, object]) -> None:
    found = fields("ESR_EL1", esr)
    assert words.items() <= found.items()
    assert ("fault" in found) == ("fault" in words)


def test_id_registers_have_the_fields_that_kvm_knows() -> None:
    found = fields("ID_AA64MMFR0_EL1", 0x1122)
    assert (found["PARANGE"], found["ASIDBITS"]) == (2, 2)


def test_what_is_not_known_has_no_fields() -> None:
    assert fields("VBAR_EL1", 5) == {}


def test_no_field_overlaps_another_and_all_are_in_64_bits() -> None:
    for register, places in register_fields._places().items():
        assert register in BY_NAME
        taken = 0
        for name, shift, width in places:
            mask = ((1 << width) - 1) << shift
            assert not taken & mask, (register, name)
            assert mask < 1 << 64
            taken |= mask
