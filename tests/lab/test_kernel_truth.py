"""What each kernel answers, and what becomes of slots that live: the profiles with the GPU.

What slots there can be at all is test_matrix's.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.lab.host import gh200
from vmm.lab.host.emulated_host import Host
from vmm.lab.kernel.flavour import BuiltKernel

# The first test may build a kernel.
pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]

EDGES = Path(__file__).parent / "inside" / "memslot_edges.py"
MAINLINE_BY_VMA, RFC_ON_REQUEST = 1, 2

# The legacy kernel is built on request only, so it is tested where somebody has.
PROFILES = [
    profile
    for profile in gh200.profiles()
    if profile.kernel != BuiltKernel("legacy") or BuiltKernel("legacy").built()
]


@cache
def measured(name: str) -> Any:
    """Return what memslot_edges.py says in a host of the profile."""
    (profile,) = (profile for profile in PROFILES if profile.name == name)
    with Host.start(profile) as host:
        done = host.run(["python3", "-"], stdin=EDGES.read_bytes(), timeout=120)
        host.close()
    assert done.status == 0, done.stderr.decode()
    return json.loads(done.stdout)


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
