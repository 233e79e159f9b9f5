"""KVM_CAP 243 on each kernel, and changes to memory slots that are in use, with the GPU.

test_matrix covers which slots can be created.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.lab.host.emulated_host import Host

# The first test may build a kernel.
pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]

Measured = Callable[[str], Any]
EDGES = Path(__file__).parent / "inside" / "memslot_edges.py"
MAINLINE_BY_VMA, RFC_ON_REQUEST = 1, 2


@pytest.fixture(scope="module")
def measured(lab_host: Callable[[str], Host]) -> Measured:
    """Return a function that returns what memslot_edges.py says in a host of a profile."""

    @cache
    def measured(profile: str) -> Any:
        done = lab_host(profile).run(["python3", "-"], stdin=EDGES.read_bytes(), timeout=120)
        assert done.status == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return measured


ANSWERS: dict[str, tuple[str, int]] = {
    "gh200": ("EINVAL", MAINLINE_BY_VMA),
    "gh200-nofwb": ("EINVAL", 0),
    "rfc": ("EINVAL", RFC_ON_REQUEST),
    "rfc-nofwb": ("EINVAL", 0),
    "legacy-gh200": ("0", 0),
    "legacy-gh200-nofwb": ("0", 0),
}


@pytest.mark.parametrize("profile", ANSWERS)
def test_capability_243_tells_the_generation_where_that_matters(
    measured: Measured, profile: str
) -> None:
    on_device, on_vm = ANSWERS[profile]
    assert measured(profile)["243"] == {"/dev/kvm": on_device, "vm": on_vm}


@pytest.mark.profile("rfc")
def test_the_proposed_flag_is_a_promise_for_as_long_as_the_slot_lives(measured: Measured) -> None:
    assert measured("rfc")["edges"] == {
        "log dirty pages": "ok",
        "move": "ok",
        "drop the flag": "EINVAL",
        "uncached over cached, flag": "EFAULT",
        "cached over uncached, no flag": "EFAULT",
        "udmabuf over anonymous, no flag": "EFAULT",
        "udmabuf over anonymous, flag": "ok",
        "uncached RAM over anonymous, no flag": "ok",
        "uncached RAM over anonymous, flag": "EFAULT",
    }


@pytest.mark.profile("gh200")
def test_mainline_silently_changes_the_type_with_what_is_mapped_under_a_slot(
    measured: Measured,
) -> None:
    assert measured("gh200")["edges"] == {
        "cached over uncached, no flag": "ok",
        "uncached over cached, no flag": "ok",
        "udmabuf over anonymous, no flag": "ok",
        "uncached RAM over anonymous, no flag": "ok",
    }


@pytest.mark.profile("gh200-nofwb")
def test_without_fwb_a_cacheable_mapping_put_under_a_slot_ends_the_vcpus_run(
    measured: Measured,
) -> None:
    assert measured("gh200-nofwb")["edges"] == {
        "cached over uncached, no flag": "EFAULT",
        "udmabuf over anonymous, no flag": "ok",
        "uncached RAM over anonymous, no flag": "ok",
    }
