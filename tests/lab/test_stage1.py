"""How the host maps device memory at stage 1, measured on real mappings of real drivers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF

pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]

FACTS = Path(__file__).parent / "inside" / "stage1_facts.py"
EDU, DISK, DISPLAY = "0000:00:10.0", "0000:00:11.0", "0000:00:12.0"
GENERATIONS = {
    "gh200": "mainline",
    "gh200-nofwb": "mainline-nofwb",
    "rfc": "rfc",
    "legacy-gh200": "legacy",
    "legacy-gh200-nofwb": "legacy",
}
Measured = Callable[..., Any]


@pytest.fixture(scope="module")
def measured(lab_host: Callable[[str], Host]) -> Measured:
    """Return a function that returns what stage1_facts.py says of a device in a profile's host."""

    @cache
    def measured(profile: str, bdf: str, *regions: int) -> Any:
        command = ["python3", "-", bdf, *map(str, regions)]
        done = lab_host(profile).run(command, stdin=FACTS.read_bytes(), timeout=180)
        assert done.status == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return measured


@pytest.mark.profile("vfio")
@pytest.mark.parametrize("bdf", [EDU, DISK, DISPLAY])
def test_what_vfio_pci_maps_shows_that_it_is_device(
    lab_host: Callable[[str], Host], measured: Measured, bdf: str
) -> None:
    """Registers that QEMU emulates one by one, and memory of a display, alike."""
    bind = lab_host("vfio").run(["pyvmm", "vfio", "bind", bdf], timeout=60)
    assert bind.status == 0, bind.stderr.decode()
    try:
        found = measured("vfio", bdf, 0)["0"]
    finally:
        lab_host("vfio").run(["pyvmm", "vfio", "unbind", bdf], timeout=60)
    assert found["on"] == ["DEVICE"]
    assert found["off"] == ["NOTHING"]
    for driver in ("known driver", "unknown driver"):
        assert found[driver]["stage1"] == "UNCACHED"
        assert found[driver]["promise"] == "NON_CACHEABLE"
        assert "takes an alignment fault" in found[driver]["because"]


@pytest.mark.kernels
@pytest.mark.parametrize("profile", GENERATIONS)
def test_a_load_tells_device_from_normal_on_every_kernel_and_no_more(
    measured: Measured, profile: str
) -> None:
    """Region 2 is Normal-NC, region 4 cacheable: TCG, which has no caches, times them alike."""
    found = measured(profile, BDF, 0, 2, 4)
    assert found["0"]["on"] == ["DEVICE"]
    assert found["2"]["on"] == found["4"]["on"] == ["NORMAL", "NOTHING"]
    assert {"DEVICE", "NORMAL"}.isdisjoint({says for one in found.values() for says in one["off"]})


UNKNOWN = {
    # generation, region: attribute, promise, how it is known
    ("mainline", 0): ("UNCACHED", "NON_CACHEABLE", "alignment fault"),
    ("mainline", 2): ("UNCACHED", "NON_CACHEABLE", "a scratch guest gets NC"),
    ("mainline", 4): ("CACHEABLE", "FORCED_WRITE_BACK", "a scratch guest gets forced WB"),
    ("mainline-nofwb", 0): ("UNCACHED", "NON_CACHEABLE", "alignment fault"),
    ("mainline-nofwb", 2): ("UNCACHED", "NON_CACHEABLE", "takes a slot of it"),
    ("mainline-nofwb", 4): "243",
    ("rfc", 0): ("UNCACHED", "NON_CACHEABLE", "alignment fault"),
    ("rfc", 2): ("UNCACHED", "NON_CACHEABLE", "without the Write-Back flag only"),
    ("rfc", 4): ("CACHEABLE", "FORCED_WRITE_BACK", "with the Write-Back flag only"),
    ("legacy", 0): ("UNCACHED", "NON_CACHEABLE", "alignment fault"),
    ("legacy", 2): "would map cacheable memory as Device",
    ("legacy", 4): "would map cacheable memory as Device",
}
"""What a region of a driver is given of which pyvmm knows nothing; or what its refusal says."""


@pytest.mark.kernels
@pytest.mark.parametrize("profile", GENERATIONS)
@pytest.mark.parametrize("region", [0, 2, 4])
def test_of_an_unknown_driver_only_what_was_measured_is_promised(
    measured: Measured, profile: str, region: int
) -> None:
    found = measured(profile, BDF, 0, 2, 4)[str(region)]["unknown driver"]
    match UNKNOWN[GENERATIONS[profile], region]:
        case str() as word:
            assert word in found["refused"]
        case stage1, promise, because:
            assert (found["stage1"], found["promise"]) == (stage1, promise)
            assert because in found["because"]
            kept = {"NON_CACHEABLE": ["NON_CACHEABLE"], "FORCED_WRITE_BACK": ["FORCED_WRITE_BACK"]}
            assert found["verdicts"] == kept[promise]


@pytest.mark.kernels
@pytest.mark.parametrize("profile", GENERATIONS)
def test_what_is_measured_agrees_with_the_drivers_source(measured: Measured, profile: str) -> None:
    for region in ("0", "2", "4"):
        known = measured(profile, BDF, 0, 2, 4)[region]["known driver"]
        assert "although" not in known.get("because", known.get("refused"))
        if "refused" not in known:
            assert "an unaligned load" in known["because"]
