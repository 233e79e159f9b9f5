"""A vCPU tells FWB and DIC on every kernel, and what RAM is promised goes by FWB alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]
SCRIPT = Path(__file__).parents[2] / "scripts" / "probe-cacheable-pfnmap"

BUILT = pytest.mark.kernels
PROFILES = {"fwb": True, "nofwb": False, "legacy-gh200": True, "legacy-gh200-nofwb": False}
"""Each profile, and whether its CPU has FEAT_S2FWB; in these CPUs DIC goes with it."""


@pytest.mark.parametrize(
    "profile",
    [pytest.param(name, marks=BUILT if "legacy" in name else ()) for name in PROFILES],
)
def test_fwb_and_dic_are_told_without_capability_243(
    lab_host: Callable[[str], Host], profile: str
) -> None:
    host, fwb = lab_host(profile), PROFILES[profile]
    done = host.run(["pyvmm", "probe", "--json"], timeout=120)
    assert done.status == 0, done.stderr.decode()
    coherence = json.loads(done.stdout)["coherence"]
    assert (coherence["cpu"]["fwb"], coherence["cpu"]["dic"]) == (fwb, fwb)
    assert (coherence["support"] == "unknown to this kernel") is ("legacy" in profile)

    done = host.run(["pyvmm", "map", "--json"], timeout=120)
    assert done.status == 0, done.stderr.decode()
    (ram,) = (entry for entry in json.loads(done.stdout) if entry["name"] == "RAM")
    assert ram["stage2"] == ("forced Write-Back" if fwb else "guest decides")
    assert (ram["maintenance"] == "none") is fwb

    told = host.run(["python3", "-"], stdin=SCRIPT.read_bytes(), timeout=120).stdout.decode()
    assert f"FEAT_S2FWB {int(fwb)}, CTR_EL0.DIC {int(fwb)}" in told
    assert f"RAM at stage 2: {ram['stage2']}" in told
