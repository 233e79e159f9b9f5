"""Descriptions of the lab's hosts, and that KVM takes the values which pyvmm says it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.state.golden import DIRECTORY, WRITE, golden, normal
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.profiles import PROFILES
from vmm.lab.kernel.flavour import BuiltKernel
from vmm.state.labels import feature_file

pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]

VALUES = Path(__file__).parent / "inside" / "id_register_values.py"


def built(profile: str) -> bool:
    return isinstance(PROFILES[profile].kernel, BuiltKernel)


@pytest.mark.parametrize(
    "profile",
    [pytest.param(name, marks=pytest.mark.kernels if built(name) else ()) for name in PROFILES],
)
def test_each_host_is_as_its_golden_description(
    lab_host: Callable[[str], Host], profile: str
) -> None:
    done = lab_host(profile).run(["pyvmm", "compat", "save"], timeout=300)
    assert done.status == 0, done.stderr.decode()
    found, path = normal(done.stdout.decode()), DIRECTORY / f"{profile}.json"
    if WRITE:
        path.write_text(found)
    assert found == path.read_text(), "PYVMM_GOLDEN=write writes it (tests/state/golden.py)"


IMPLEMENTATION_DEFINED = {"ID_AA64DFR0_EL1.PMUVer", "ID_DFR0_EL1.PerfMon"}
"""Fields in which KVM takes all ones for "none" (set_id_aa64dfr0_el1, set_id_dfr0_el1)."""

LATER = {"ID_AA64PFR0_EL1.EL0", "ID_AA64PFR0_EL1.EL1"}
"""Fields that Linux 6.12 lets be 0; later kernels refuse that, and so does the model."""


@pytest.mark.parametrize(
    "profile",
    [
        "fwb",
        "nofwb",
        pytest.param("legacy-gh200", marks=pytest.mark.kernels),
    ],
)
def test_kvm_takes_what_the_model_says(lab_host: Callable[[str], Host], profile: str) -> None:
    """Of each field of each ID register: its neighbours, 0, all ones; and each bit of no field."""
    host = lab_host(profile)
    done = host.run(["python3", "-"], stdin=VALUES.read_bytes(), timeout=300)
    assert done.status == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["tried"] > 3000
    names = {name for _, _, _, fields in found["surprises"] for name in fields}
    assert names == IMPLEMENTATION_DEFINED | (LATER if "legacy" in profile else set())


@pytest.mark.profile("vfio")
def test_a_device_that_a_vfio_driver_has_tells_whether_it_migrates(
    lab_host: Callable[[str], Host],
) -> None:
    host = lab_host("vfio")
    bdf = "0000:00:10.0"
    assert host.run(["pyvmm", "vfio", "bind", bdf], timeout=120).status == 0
    try:
        done = host.run(["pyvmm", "compat", "save"], timeout=300)
        assert done.status == 0, done.stderr.decode()
        (device,) = json.loads(done.stdout)["devices"]
        assert (device["bdf"], device["driver"]) == (bdf, "vfio-pci")
        # vfio-pci alone migrates nothing: VFIO_DEVICE_FEATURE_MIGRATION is ENOTTY.
        assert (device["migration"], device["note"]) == ([], "")
    finally:
        assert host.run(["pyvmm", "vfio", "unbind", bdf], timeout=120).status == 0


def test_fwb_is_refused_by_name_from_files(lab_host: Callable[[str], Host]) -> None:
    files = [str(DIRECTORY / name) for name in ("fwb.json", "nofwb.json")]
    host = lab_host("fwb")
    for pair in (files, files[::-1]):
        done = host.run(["pyvmm", "compat", "diff", *pair], timeout=120)
        assert done.status == 11, done.stderr.decode()
        reasons = re.findall(r"because (\S+):", done.stdout.decode())
        assert reasons[0] == "ID_AA64MMFR2_EL1.FWB"


@pytest.mark.parametrize("profile", ["fwb", "nofwb"])
def test_labels_are_those_of_the_description(lab_host: Callable[[str], Host], profile: str) -> None:
    done = lab_host(profile).run(["pyvmm", "probe", "--format", "nfd"], timeout=120)
    assert done.status == 0, done.stderr.decode()
    assert done.stdout.decode() == feature_file(golden(profile))
