"""`pyvmm run --cpu-baseline`: the guest sees the CPU that all hosts can show, or does not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.state.golden import golden
from tests.state.test_comparison import with_cpu, with_field
from vmm.lab.guest import uki
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside
from vmm.state import baseline
from vmm.state.comparison import FWB
from vmm.state.visible_cpu import VisibleCpu

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SHOW = (
    "grep -m1 Features /proc/cpuinfo; grep -c ^processor /proc/cpuinfo; dmesg | grep -o "
    "'SVE: maximum available vector length [0-9]*'; ls -d /proc/device-tree/pmu "
    "/proc/device-tree/interrupt-controller@*/msi-controller@*; true"
)


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    host = lab_host("fwb")
    packages.install(host, ["virtiofsd"])
    return host


def run(host: Host, directory: Path, cpu: VisibleCpu | None, *options: str) -> tuple[int, str, str]:
    """Run `SHOW` in a guest that sees *cpu*; return status, output and messages."""
    if cpu is not None:
        (directory / "cpu.json").write_text(baseline.text(cpu))
        options = ("--cpu-baseline", "cpu.json", *options)
    line = ["pyvmm", "run", inside(uki.guest_image()), *options, "--", "sh", "-c", SHOW]
    done = host.run(line, cwd=directory, timeout=300)
    return done.status, done.stdout.decode(), done.stderr.decode()


def test_a_guest_sees_what_all_hosts_have(host: Host, tmp_path: Path) -> None:
    """The same host, and one that lacks random numbers, long vectors and the PMU."""
    here = golden("fwb")
    lesser = with_cpu(
        with_field("ID_AA64ISAR0_EL1.RNDR", 0),
        sve_vector_lengths=(16, 32, 48, 64),
        features=("PTRAUTH", "SVE"),
    )
    status, output, errors = run(host, tmp_path, None, "--cpus", "2")
    assert status == 0, errors
    assert " rng" in output
    assert "vector length 256" in output
    assert "/proc/device-tree/pmu" in output
    assert "msi-controller" in output

    cpu = baseline.common([here, lesser])
    status, output, errors = run(host, tmp_path, cpu, "--cpus", "2")
    assert status == 0, errors
    features, processors, *_ = output.splitlines()
    assert " rng" not in features
    assert " sve " in features
    assert " paca " in features
    assert processors == "2"
    assert "vector length 64" in output
    assert "/proc/device-tree/pmu" not in output


def test_a_guest_can_lack_all_optional_features(host: Host, tmp_path: Path) -> None:
    here = golden("fwb")
    status, output, errors = run(
        host, tmp_path, baseline.common([here, with_cpu(features=(), gic=("GICv3",))])
    )
    assert status == 0, errors
    features = output.splitlines()[0]
    assert not {"sve", "paca", "sve2"} & set(features.split())
    assert "msi-controller" not in output


@pytest.mark.parametrize(
    ("cpu", "complaint"),
    [
        (with_field(FWB, 0).cpu, f"this host cannot show it: {FWB}: 0 was seen"),
        (with_field("ID_AA64MMFR1_EL1.VH", 0).cpu, "ID_AA64MMFR1_EL1.VH: 0 was seen"),
        (with_cpu(counter_hz=24_000_000).cpu, "CNTFRQ_EL0: the counter runs at 24000000 Hz"),
        (with_cpu(gic=("GICv2",)).cpu, "GIC: the guest has GICv2"),
        (with_cpu(ipa_bits=30).cpu, "past the 30 bits of address that all hosts have"),
    ],
)
def test_what_is_not_writable_is_not_masked(
    host: Host, tmp_path: Path, cpu: VisibleCpu, complaint: str
) -> None:
    status, output, errors = run(host, tmp_path, cpu)
    assert (status, output) == (2, "")
    assert errors.startswith("pyvmm: --cpu-baseline cpu.json: ")
    assert complaint in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": {"ID_AA64XXX_EL1": "0x0"}}, "cpu.registers: ID_AA64XXX_EL1 is no register"),
        ({"registers": {"MIDR_EL1": 1}}, "cpu.registers.MIDR_EL1: 1 is not a number"),
        ({"firmware": {"PSCI": "0x1"}}, "cpu.firmware: PSCI is no register"),
    ],
)
def test_a_file_that_is_wrong_is_named_before_a_guest_starts(
    host: Host, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    value = json.loads(baseline.text(replace(golden("fwb").cpu)))
    value["cpu"].update(change)
    (tmp_path / "cpu.json").write_text(json.dumps(value))
    line = ["pyvmm", "run", inside(uki.guest_image()), "--cpu-baseline", "cpu.json"]
    done = host.run(line, cwd=tmp_path, timeout=120)
    assert done.status == 2
    assert complaint in done.stderr.decode()
