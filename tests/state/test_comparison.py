"""Which hosts a guest can move between, from descriptions of the lab's hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.state.golden import golden
from vmm.arm64.id_registers import field_of
from vmm.errors import UserError
from vmm.state import baseline
from vmm.state.comparison import FWB, check_override, notes, owed, refusal
from vmm.state.host_description import HostDescription
from vmm.state.verdict import Verdict, move
from vmm.typed_json import Hex

HOST = golden("fwb")


def with_cpu(host: HostDescription = HOST, **changes: Any) -> HostDescription:
    return replace(host, cpu=replace(host.cpu, **changes))


def with_field(name: str, value: int, host: HostDescription = HOST) -> HostDescription:
    """Return *host* with one field of an ID register changed."""
    register, _, field_name = name.partition(".")
    registers = {**host.cpu.registers}
    registers[register] = field_of(register, field_name).put(registers[register], value)
    return with_cpu(host, registers=registers)


def subjects(source: HostDescription, destination: HostDescription) -> list[str]:
    return [reason.subject for reason in refusal(source, destination)]


def test_a_guest_can_go_on_where_it_is() -> None:
    assert refusal(HOST, HOST) == []
    assert move(("a", "b"), HOST, HOST).verdict is Verdict.COMPATIBLE


@pytest.mark.parametrize("profiles", [("fwb", "nofwb"), ("nofwb", "fwb")])
def test_fwb_is_the_first_reason_both_ways(profiles: tuple[str, str]) -> None:
    source, destination = map(golden, profiles)
    first, *others = refusal(source, destination)
    assert first.subject == FWB
    assert "KVM does not let the field be written, either way" in first.text
    assert FWB not in [other.subject for other in others]


@pytest.mark.parametrize("value", [0, 1])
def test_fwb_alone_is_enough_and_no_baseline_hides_it(value: int) -> None:
    """Hosts that differ in nothing else, both ways."""
    source, destination = with_field(FWB, value), with_field(FWB, 1 - value)
    assert subjects(source, destination) == [FWB]
    found = move(("a", "b"), source, destination)
    assert found.verdict is Verdict.INCOMPATIBLE
    assert [reason.subject for reason in found.remaining] == [FWB]


def test_a_host_that_does_not_tell_fwb_is_refused() -> None:
    silent = {**HOST.cpu.registers}
    del silent["ID_AA64MMFR2_EL1"]
    assert subjects(HOST, with_cpu(registers=silent))[0] == FWB
    assert subjects(with_cpu(registers=silent), HOST) == [FWB]


def test_what_the_destination_lacks_needs_a_baseline_from_the_start() -> None:
    lesser = with_field("ID_AA64ISAR0_EL1.RNDR", 0)
    assert subjects(HOST, lesser) == ["ID_AA64ISAR0_EL1.RNDR"]
    assert subjects(lesser, HOST) == []
    assert move(("a", "b"), HOST, lesser).verdict is Verdict.WITH_BASELINE
    cpu = baseline.common([HOST, lesser])
    assert cpu.field("ID_AA64ISAR0_EL1", "RNDR") == 0
    assert not refusal(HOST, lesser, cpu)
    assert not refusal(lesser, HOST, cpu)


def test_dic_can_be_hidden_and_is_told_apart_from_fwb() -> None:
    assert subjects(HOST, with_field("CTR_EL0.DIC", 0)) == ["CTR_EL0.DIC"]
    assert subjects(with_field("CTR_EL0.DIC", 0), HOST) == []


def test_a_kernel_that_cannot_say_what_is_writable_writes_nothing() -> None:
    nothing = replace(HOST.changes, writable=None)
    old = replace(with_field("ID_AA64ISAR0_EL1.RNDR", 0), changes=nothing)
    assert subjects(old, replace(HOST, changes=nothing)) == ["ID_AA64ISAR0_EL1.RNDR"]
    assert move(("a", "b"), HOST, old).verdict is Verdict.INCOMPATIBLE


@pytest.mark.parametrize(
    ("changes", "subject", "verdict"),
    [
        ({"counter_hz": 1}, "CNTFRQ_EL0", Verdict.INCOMPATIBLE),
        ({"gic": ("GICv2",)}, "GIC", Verdict.INCOMPATIBLE),
        ({"gic": ("GICv3", "GICv2")}, "ITS", Verdict.WITH_BASELINE),
        ({"ipa_bits": 40}, "IPA", Verdict.WITH_BASELINE),
        ({"features": ("PTRAUTH", "SVE")}, "PMU_V3", Verdict.WITH_BASELINE),
        ({"features": ("PMU_V3", "SVE")}, "PTRAUTH", Verdict.WITH_BASELINE),
        ({"features": ("PMU_V3", "PTRAUTH")}, "SVE", Verdict.WITH_BASELINE),
        ({"sve_vector_lengths": (16, 32)}, "SVE", Verdict.WITH_BASELINE),
        ({"sve_vector_lengths": (16, 64)}, "SVE", Verdict.WITH_BASELINE),
    ],
)
def test_parts_that_the_destination_lacks(
    changes: Mapping[str, Any], subject: str, verdict: Verdict
) -> None:
    destination = with_cpu(**changes)
    found = move(("a", "b"), HOST, destination)
    assert [reason.subject for reason in found.reasons] == [subject]
    assert found.verdict is verdict


@pytest.mark.parametrize(
    ("name", "here", "there", "taken"),
    [
        ("PSCI_VERSION", 0x10001, 0x10003, True),
        ("PSCI_VERSION", 0x10003, 0x10001, False),
        ("SMCCC_ARCH_WORKAROUND_1", 1, 2, True),
        ("SMCCC_ARCH_WORKAROUND_1", 2, 1, False),
        ("SMCCC_ARCH_WORKAROUND_2", 1, 0, True),
        ("SMCCC_ARCH_WORKAROUND_2", 3, 2, True),
        ("SMCCC_ARCH_WORKAROUND_2", 2, 1, False),
        ("VENDOR_HYP_BMAP", 0b01, 0b11, True),
        ("VENDOR_HYP_BMAP", 0b10, 0b01, False),
        ("VENDOR_HYP_BMAP", 0b01, 0b10, False),
        ("VENDOR_HYP_BMAP_2", 0b10, 0b01, False),
    ],
)
def test_firmware_that_the_destination_lacks(
    name: str, here: int, there: int, *, taken: bool
) -> None:
    firmware = HOST.cpu.firmware
    source = with_cpu(firmware={**firmware, name: here})
    destination = with_cpu(firmware={**firmware, name: there})
    assert subjects(source, destination) == ([] if taken else [f"KVM_REG_ARM_{name}"])


@pytest.mark.parametrize("name", ["MIDR_EL1", "REVIDR_EL1", "AIDR_EL1"])
def test_another_cpu_is_refused(name: str) -> None:
    other = with_cpu(registers={**HOST.cpu.registers, name: 0x410FD4F0})
    assert subjects(HOST, other) == [name]
    assert move(("a", "b"), HOST, other).verdict is Verdict.INCOMPATIBLE


def test_pages_and_cacheable_device_memory_are_notes() -> None:
    assert not refusal(golden("fwb"), golden("16k"))
    assert any("16384" in note for note in notes(golden("fwb"), golden("16k")))
    assert any("cacheable PFNMAP" in note for note in notes(golden("gh200"), golden("rfc")))
    assert any("cannot migrate it" in note for note in notes(golden("gh200"), golden("gh200")))


def test_an_override_is_of_an_id_register_and_tells_what_is_owed() -> None:
    source, destination = with_field(FWB, 1), with_field(FWB, 0)
    found = move(("a", "b"), source, destination, {FWB})
    assert found.verdict is Verdict.COMPATIBLE
    assert [reason.subject for reason in found.overridden] == [FWB]
    assert any("changes a guest-visible ID register" in line for line in found.lines())
    check_override([FWB, "MIDR_EL1"])
    for wrong in ("CNTFRQ_EL0", "GIC", "ID_AA64MMFR2_EL1.FBW", "ID_AA64MMFR9_EL1.FWB", ""):
        with pytest.raises(UserError, match="no ID register"):
            check_override([wrong])


def test_what_is_owed_goes_by_fwb_at_each_end() -> None:
    with_fwb, without_fwb = golden("fwb"), golden("nofwb")
    assert owed(with_fwb, with_fwb) == []
    ends = [line.partition(":")[0] for line in owed(without_fwb, with_fwb)]
    assert ends == ["source"]
    text = "\n".join(owed(with_fwb, without_fwb))
    assert "source:" not in text
    assert "DC CVAC" in text
    assert "IC IVAU" in text


def test_hosts_without_a_register_of_a_newer_kernel_can_share_a_baseline() -> None:
    registers = {**HOST.cpu.registers}
    del registers["AIDR_EL1"]
    older = with_cpu(registers=registers)
    assert subjects(HOST, older) == ["AIDR_EL1"]
    assert move(("a", "b"), HOST, older).verdict is Verdict.WITH_BASELINE


def test_a_field_that_older_kernels_showed_is_put_up_with_one_way_only() -> None:
    """Linux 6.12 shows NV of the CPU, 7.3 shows 0 and takes that value."""
    older, newer = golden("legacy-gh200"), golden("gh200")
    shown = older.cpu.field("ID_AA64MMFR2_EL1", "NV")
    assert newer.changes.ignored["ID_AA64MMFR2_EL1.NV"] == (shown,)
    assert subjects(older, newer) == []
    assert "ID_AA64MMFR2_EL1.NV" in subjects(newer, older)
    assert move(("a", "b"), newer, older).verdict is Verdict.INCOMPATIBLE


def test_kvm_can_cut_a_set_of_vector_lengths_at_its_end_alone() -> None:
    source = with_cpu(sve_vector_lengths=(16, 64))
    assert subjects(source, with_cpu(sve_vector_lengths=(16, 32, 64))) == ["SVE"]
    assert subjects(source, with_cpu(sve_vector_lengths=(16, 64, 128))) == []


def test_fields_that_tell_of_a_lacking_feature_are_no_reasons_of_their_own() -> None:
    """The kernel that is built here has neither of the two, and zeroes in their fields."""
    assert subjects(golden("fwb"), golden("gh200")) == ["PTRAUTH", "SVE"]


def test_a_baseline_has_the_hypercalls_that_all_hosts_have() -> None:
    def host(bitmap: int) -> HostDescription:
        return with_cpu(firmware={**HOST.cpu.firmware, "VENDOR_HYP_BMAP": Hex(bitmap)})

    cpu = baseline.common([host(0b101), host(0b110)])
    assert cpu.firmware["VENDOR_HYP_BMAP"] == 0b100


def test_a_baseline_for_one_host_is_what_it_has() -> None:
    cpu = baseline.common([HOST])
    assert not refusal(HOST, HOST, cpu)
    assert cpu.sve_vector_lengths == HOST.cpu.sve_vector_lengths


def test_fields_that_tell_of_a_feature_count_where_both_have_it() -> None:
    assert subjects(HOST, with_field("ID_AA64ZFR0_EL1.SM4", 0)) == ["ID_AA64ZFR0_EL1.SM4"]
    assert subjects(HOST, with_field("ID_AA64DFR0_EL1.PMUVer", 1)) == ["ID_AA64DFR0_EL1.PMUVer"]
