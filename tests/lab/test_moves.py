"""KVM at each host takes what guests of each other host have seen, where the matrix says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_compat import built
from tests.state.golden import DIRECTORY, golden, names
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.profiles import PROFILES
from vmm.state import baseline
from vmm.state.comparison import refusal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]

SHOWN = Path(__file__).parent / "inside" / "shown_elsewhere.py"

UNASKED = {"CNTFRQ_EL0", "IPA", "ITS"}
"""Reasons that no register tells KVM of."""


def ask(host: Host, *files: Path) -> dict[str, Any]:
    """Return what shown_elsewhere.py says of *files* at *host*."""
    words = ["python3", "-", *map(str, files)]
    done = host.run(words, stdin=SHOWN.read_bytes(), timeout=600)
    assert done.status == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "profile",
    [pytest.param(name, marks=pytest.mark.kernels if built(name) else ()) for name in PROFILES],
)
def test_kvm_refuses_what_the_matrix_refuses_and_no_more(
    lab_host: Callable[[str], Host], profile: str
) -> None:
    """For guests of each host, moved to this one: the parts that `refusal` names, and no others."""
    found = ask(lab_host(profile), *(DIRECTORY / f"{name}.json" for name in names()))
    for source in names():
        subjects = {reason.subject for reason in refusal(golden(source), golden(profile))}
        named = {one.removeprefix("KVM_REG_ARM_").partition(".")[0] for one in subjects - UNASKED}
        refused = {one.removeprefix("KVM_REG_ARM_") for one in found[source]["refused"]}
        if "GIC" in refused:
            assert "GIC" in named, source
        else:
            assert refused == named - {"GIC"}, source
        fwb = golden(source).cacheable.fwb is not golden(profile).cacheable.fwb
        if fwb and "GIC" not in refused:
            assert "ID_AA64MMFR2_EL1" in refused, source


PAIRS = {
    "fwb": "gh200",
    "gh200": "fwb",
    "nofwb": "legacy-gh200-nofwb",
    "legacy-gh200-nofwb": "nofwb",
}
"""Hosts with another whose guests need a baseline to come here, or to go there."""


@pytest.mark.parametrize(
    "profile",
    [pytest.param(name, marks=pytest.mark.kernels if built(name) else ()) for name in PAIRS],
)
def test_a_guest_with_a_baseline_sees_all_of_it_at_each_host(
    lab_host: Callable[[str], Host], tmp_path: Path, profile: str
) -> None:
    cpu = baseline.common([golden(profile), golden(PAIRS[profile])])
    path = tmp_path / "baseline.json"
    path.write_text(baseline.text(cpu))
    found = ask(lab_host(profile), path)["baseline"]
    assert found["refused"] == []
    for name, value in cpu.registers.items():
        # Fields that tell of the VM's GIC are KVM's to set.
        gic = {"ID_AA64PFR0_EL1": 0xF << 24, "ID_PFR1_EL1": 0xF << 28}.get(name, 0)
        assert int(found["registers"][name], 16) & ~gic == value & ~gic, name
