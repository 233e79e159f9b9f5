"""``pyvmm explain``: what an errno may mean, and where the kernel says it."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from vmm.cli.explain import TABLE, explain
from vmm.errors import UserError


def said(*arguments: str) -> str:
    done = CliRunner().invoke(explain, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_causes_have_remedies_and_the_kernels_function() -> None:
    lines = said("KVM_RUN", "ENOEXEC").splitlines()
    assert lines == [
        "KVM_RUN: ENOEXEC (Exec format error)",
        "  1. KVM_ARM_VCPU_INIT has not been done",
        "     from  kvm_arch_vcpu_run_pid_change (arch/arm64/kvm/arm.c)",
    ]
    assert said("KVM_RUN", "enoexec") == said("KVM_RUN", "8")


def test_a_call_without_an_errno_has_all_of_its_own() -> None:
    heads = [line for line in said("VFIO_IOMMU_MAP_DMA").splitlines() if line[0] != " "]
    assert len(heads) == len({number for call, number in TABLE if call == "VFIO_IOMMU_MAP_DMA"})
    assert all(head.startswith("VFIO_IOMMU_MAP_DMA: E") for head in heads)


def test_an_errno_that_all_calls_may_have_is_explained_for_each() -> None:
    assert "the descriptor is closed" in said("KVM_RUN", "EBADF")
    assert "does not answer" in said("VFIO_DEVICE_RESET", "EIO")


def test_without_a_call_those_that_are_known_are_listed() -> None:
    assert {line.partition(":")[0] for line in said().splitlines()} == {call for call, _ in TABLE}
    assert json.loads(said("--json"))["KVM_GET_DIRTY_LOG"] == ["ENOENT", "ENXIO", "EINVAL"]


def test_json_has_the_same() -> None:
    (cause,) = json.loads(said("KVM_RUN", "ENOEXEC", "--json"))["ENOEXEC"]
    assert cause["where"] == "kvm_arch_vcpu_run_pid_change (arch/arm64/kvm/arm.c)"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["KVM_RUM"], "nothing is known of KVM_RUM; did you mean KVM_RUN?"),
        (["open"], "nothing is known of open; `pyvmm explain` lists the calls"),
        (["KVM_RUN", "EWHAT"], "EWHAT is no errno; give its name or number: EINVAL, or 22"),
        (["KVM_RUN", "ENOLCK"], "no cause of ENOLCK is known for KVM_RUN; `pyvmm explain KVM_RUN`"),
    ],
)
def test_what_is_not_known_is_said(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"explain: {line}")):
        CliRunner().invoke(explain, arguments, catch_exceptions=False)
