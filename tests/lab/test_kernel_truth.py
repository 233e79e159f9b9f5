"""The truth table of cacheable PFNMAP, kernel by kernel, for real: the profiles with the GPU."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.lab import gh200
from vmm.lab.host import Host
from vmm.lab.kernel import BuiltKernel

# The first test may build a kernel.
pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]

ROWS = Path(__file__).with_name("memslot_rows.py")
RAM = ("anonymous", "memfd", "hugetlb")
MAINLINE_BY_VMA, RFC_ON_REQUEST = 1, 2

# The legacy kernel is built on request only, so it is tested where somebody has.
PROFILES = [
    profile
    for profile in gh200.profiles()
    if profile.kernel != BuiltKernel("legacy") or BuiltKernel("legacy").built()
]


@cache
def measured(name: str) -> Any:
    """Return what memslot_rows.py says in a host of the profile."""
    (profile,) = (profile for profile in PROFILES if profile.name == name)
    with Host.start(profile) as host:
        done = host.run(["python3", "-"], stdin=ROWS.read_bytes(), timeout=120)
        host.close()
    assert done.status == 0, done.stderr.decode()
    return json.loads(done.stdout)


# EINVAL where the slot is refused, else the memory type that the stage-2 dump shows after a touch.
TABLE = {
    #                memory without / with the flag, regions 0 and 2, region 4
    "gh200": ("MEM/NORMAL-FWB", "EINVAL", "MEM/NORMAL-NC", "EINVAL", "MEM/NORMAL-FWB", "EINVAL"),
    "gh200-nofwb": ("MEM/NORMAL", "EINVAL", "MEM/NORMAL-NC", "EINVAL", "EINVAL", "EINVAL"),
    "rfc": (
        *("MEM/NORMAL-FWB", "MEM/NORMAL-FWB"),
        *("MEM/NORMAL-NC", "EINVAL"),
        *("EINVAL", "MEM/NORMAL-FWB"),
    ),
    "rfc-nofwb": ("MEM/NORMAL", "EINVAL", "MEM/NORMAL-NC", "EINVAL", "EINVAL", "EINVAL"),
    # All accepted, and no stage-2 dump to see that region 4 is Device.
    "legacy-gh200": ("no dump", "EINVAL", "no dump", "EINVAL", "no dump", "EINVAL"),
    "legacy-gh200-nofwb": ("no dump", "EINVAL", "no dump", "EINVAL", "no dump", "EINVAL"),
}


@pytest.mark.parametrize("name", [profile.name for profile in PROFILES])
def test_every_row_is_as_known(name: str) -> None:
    ram, ram_flag, uncached, uncached_flag, cached, cached_flag = TABLE[name]
    expected = {f"{kind}, no flag": ram for kind in RAM}
    expected |= {f"{kind}, flag": ram_flag for kind in RAM}
    expected |= {f"region {index}, no flag": uncached for index in (0, 2)}
    expected |= {f"region {index}, flag": uncached_flag for index in (0, 2)}
    expected |= {"region 4, no flag": cached, "region 4, flag": cached_flag}
    assert measured(name)["rows"] == expected


ANSWERS: dict[str, tuple[str, int]] = {
    "gh200": ("EINVAL", MAINLINE_BY_VMA),
    "gh200-nofwb": ("EINVAL", 0),
    "rfc": ("EINVAL", RFC_ON_REQUEST),
    "rfc-nofwb": ("EINVAL", 0),
    "legacy-gh200": ("0", 0),
    "legacy-gh200-nofwb": ("0", 0),
}


@pytest.mark.parametrize("name", [profile.name for profile in PROFILES])
def test_capability_243_tells_the_generation_where_that_matters(name: str) -> None:
    on_device, on_vm = ANSWERS[name]
    assert measured(name)["243"] == {"/dev/kvm": on_device, "vm": on_vm}


def test_the_proposed_flag_is_a_promise_for_as_long_as_the_slot_lives() -> None:
    assert measured("rfc")["edges"] == {
        "log dirty pages": "ok",
        "move": "ok",
        "drop the flag": "EINVAL",
        "uncached over cached, flag": "EFAULT",
        "cached over uncached, no flag": "EFAULT",
    }


def test_mainline_silently_changes_the_type_with_what_is_mapped_under_a_slot() -> None:
    assert measured("gh200")["edges"] == {
        "cached over uncached, no flag": "ok",
        "uncached over cached, no flag": "ok",
    }


def test_without_fwb_a_cacheable_mapping_put_under_a_slot_ends_the_vcpus_run() -> None:
    assert measured("gh200-nofwb")["edges"] == {"cached over uncached, no flag": "EFAULT"}
