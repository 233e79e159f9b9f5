"""A scratch guest is made as the guest is: its granule, and memory tagging."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmm.coherence.scratch_table import Granule
from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]
Hosts = Callable[[str], Host]
FACTS = Path(__file__).parent / "inside" / "scratch_facts.py"
BAR = "0000:00:12.0:0"
"""16 MiB of a display's memory."""


def facts(host: Host) -> dict[str, Any]:
    done = host.run(["python3", "-"], stdin=FACTS.read_bytes(), timeout=300)
    assert done.status == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def verify(host: Host, *options: str) -> tuple[int, str]:
    command = ["pyvmm", "verify", "--host", "native", "--bar", BAR, *options]
    done = host.run(command, timeout=120)
    return done.status, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("profile", "expected"), [("fwb", "forced WB"), ("nofwb", "guest decides")]
)
def test_a_scratch_guest_runs_with_each_granule(
    lab_host: Hosts, profile: str, expected: str
) -> None:
    found = facts(lab_host(profile))
    assert found["chosen"] == Granule.KIB_4.name
    assert found["one run"] == "ran"
    assert [found[granule.name] for granule in Granule] == [expected] * 3
    assert "KVM_CAP_ARM_MTE is 0" in found["mte"]
    assert found["a store"]["type"] == expected
    assert any("tries to store" in said for said in found["a store"]["evidence"])
    assert found["unchanged"]


@pytest.mark.profile("mte")
def test_a_scratch_guest_has_memory_tagging(lab_host: Hosts) -> None:
    found = facts(lab_host("mte"))
    assert found["mte"] == "forced WB"


@pytest.mark.profile("mte")
def test_verify_proves_what_such_a_guest_gets(lab_host: Hosts) -> None:
    """KVM refuses a tagging VM all device memory, which cannot have tags; without, it maps it."""
    host = lab_host("mte")
    done = host.run(["pyvmm", "vfio", "bind", BAR[:-2]], timeout=120)
    assert done.status == 0, done.stderr.decode()
    status, said = verify(host)
    assert status == 0, said
    assert "stage 2: NC (" in said
    status, said = verify(host, "--guest-has", "mte")
    assert status != 0
    assert "EINVAL" in said
    assert "memory tagging" in said
