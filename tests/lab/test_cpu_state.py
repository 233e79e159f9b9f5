"""vCPUs and GIC move from one VM to another, by KVM's own account of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).parent / "inside" / "cpu_state.py"

VERSIONS = {"fwb": 3, "nofwb": 3, "gicv2": 2}
"""Each profile, and its GIC's version."""

DISTURBED = {
    3: {
        "gic.registers.cpu1.GICR_ISPENDR0",
        "gic.registers.distributor.GICD_IROUTER40_lo",
        "gic.registers.distributor.level1",
    },
    2: {"gic.registers.cpu1.GICD_IPRIORITYR5", "gic.registers.distributor.GICD_ITARGETSR10"},
}
"""What the script must have given values that no reset gives, besides what all have."""
EVERYWHERE = {
    "gic.registers.distributor.GICD_ISPENDR1",
    "gic.registers.distributor.GICD_ISACTIVER1",
    "vcpus.0.events.serror_pending",
    "vcpus.1.registers.x7",
    "vcpus.0.registers.pc",
    "vcpus.0.registers.CNTV_CVAL_EL0",
}


@pytest.mark.parametrize("profile", VERSIONS)
def test_vcpus_and_gic_are_the_same_in_another_vm(
    lab_host: Callable[[str], Host], profile: str
) -> None:
    """Every register that KVM lists, by way of JSON; time stands still and then goes on."""
    done = lab_host(profile).run(["python3", "-"], stdin=SCRIPT.read_bytes(), timeout=300)
    assert done.status == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["version"] == VERSIONS[profile]
    assert report["values"] > 500, "KVM_GET_REG_LIST has some 300 registers for each vCPU"
    assert set(report["disturbed"]) >= EVERYWHERE | DISTURBED[report["version"]]
    assert report["differences"] == {}
    old, new = report["counters"]["vcpus.0.registers.CNTVCT_EL0"]
    assert old < new < old + 60 * 1_000_000_000, "the counter does not go on from its saved value"
    assert report["refused"].startswith("vCPU 0: ID_AA64MMFR2_EL1 was 0x"), report["refused"]
    assert "KVM does not let it change" in report["refused"]
