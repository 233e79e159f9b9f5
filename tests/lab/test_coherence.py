"""Verdicts leave nothing behind and claim nothing that they did not see; faults are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmm.errors import EXIT_HOST
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF

pytestmark = [
    pytest.mark.lab,
    pytest.mark.kernels,
    pytest.mark.profile("gh200"),
    pytest.mark.timeout(7200),
]
Hosts = Callable[[str], Host]
FACTS = Path(__file__).parent / "inside" / "coherence_facts.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "cacheable_bar.py"
SCRIPT = Path(__file__).parents[2] / "scripts" / "probe-cacheable-pfnmap"


def facts(host: Host, name: str) -> Any:
    done = host.run(["python3", "-", BDF, name], stdin=FACTS.read_bytes(), timeout=120)
    assert done.status == 0, done.stderr.decode()
    return json.loads(done.stdout)[name]


@pytest.fixture(scope="module")
def verdicts(lab_host: Hosts) -> Callable[[], Any]:
    return cache(lambda: facts(lab_host("gh200"), "verdicts"))


def test_planting_an_instruction_is_not_mistaken_for_executing_it(
    verdicts: Callable[[], Any],
) -> None:
    """Region 2 accepts the store of an instruction but not its execution; region 4 allows both."""
    assert verdicts()["region 2"]["verdict"][0] == "NC"
    assert verdicts()["region 4"]["verdict"][0] == "forced WB"
    assert "executing from it works" in verdicts()["region 4"]["verdict"]


def test_a_verdict_leaves_what_a_range_holds_and_no_vm(verdicts: Callable[[], Any]) -> None:
    assert verdicts()["region 2"]["kept"]
    assert verdicts()["region 4"]["kept"]
    assert verdicts()["left"] == []


def test_memory_that_is_off_is_not_taken_for_device_memory(verdicts: Callable[[], Any]) -> None:
    """KVM_RUN fails with EFAULT for both. Switching memory on restores the verdict."""
    kind, evidence, *_ = verdicts()["memory off"]
    assert kind == "undecidable"
    assert "EFAULT" in evidence
    assert verdicts()["memory on"][0] == "NC"


def test_a_machine_whose_devices_memory_is_switched_off_ends_with_the_reason(
    lab_host: Hosts,
) -> None:
    said = facts(lab_host("gh200"), "switched off")
    assert f"{BDF} region 0 at IPA [0x100000000, " in said
    assert "memory is switched off" in said


@pytest.mark.parametrize("profile", ["gh200-nofwb", "legacy-gh200"])
def test_a_cacheable_region_is_refused_before_any_slot_of_it_exists(
    lab_host: Hosts, profile: str
) -> None:
    """The only slots are those that probe flags, one page of ordinary memory each."""
    refusal = facts(lab_host(profile), "refusal")
    assert "243" in refusal["said"]
    assert refusal["largest"] <= 65536


@pytest.mark.profile("gh200-nofwb")
def test_a_refused_slot_is_bisected_to_its_first_page(lab_host: Hosts) -> None:
    found = facts(lab_host("gh200-nofwb"), "bisected")
    assert found["alone"].startswith(
        "a new VM takes the slot with ordinary memory in it: the mapping is why (VMA "
    )
    assert "the mapping is why from offset 0x5000 on (VMA " in found["mixed"]
    assert "vfio" in found["mixed"]


@pytest.mark.profile("rfc")
def test_a_slot_that_wants_the_flag_is_bisected_to_it(lab_host: Hosts) -> None:
    found = facts(lab_host("rfc"), "bisected")
    assert "takes the slot with the Write-Back flag" in found["alone"]


@pytest.mark.profile("legacy-gh200")
@pytest.mark.parametrize("uapi", ["auto", "mainline", "rfc"])
def test_verify_makes_no_hazard_to_look_at_it(lab_host: Hosts, uapi: str) -> None:
    """Not even with --uapi: on a legacy kernel only the survey maps such memory."""
    command = ["pyvmm", "verify", "--host", "native", "--bar", f"{BDF}:4", "--uapi", uapi]
    done = lab_host("legacy-gh200").run(command, timeout=60)
    assert done.status == EXIT_HOST
    assert b"does not know KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("profile", "region", "status", "said"),
    [
        ("gh200", 4, 0, "verdict:     forced WB"),
        ("gh200", 2, 1, "refused: cache=require"),
        ("gh200-nofwb", 4, 1, "FEAT_S2FWB"),
        ("rfc", 4, 0, "verdict:     forced WB"),
        ("legacy-gh200", 4, 1, "and this kernel does not know"),
    ],
)
def test_the_example_shows_what_it_says(
    lab_host: Hosts, profile: str, region: int, status: int, said: str
) -> None:
    done = lab_host(profile).run(["python3", str(EXAMPLE), BDF, str(region)], timeout=60)
    assert done.status == status, done.stderr.decode()
    assert said in (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("profile", "status", "said"),
    [
        ("gh200", 0, "mainline: no flag"),
        ("gh200-nofwb", 1, "the slot is refused"),
        ("rfc", 0, "rfc: set the flag"),
        ("rfc-nofwb", 1, "the slot is refused"),
        ("legacy-gh200", 2, "legacy: unknown here"),
    ],
)
def test_the_standalone_script_tells_the_generations_apart(
    lab_host: Hosts, profile: str, status: int, said: str
) -> None:
    done = lab_host(profile).run(["python3", "-I", str(SCRIPT)], timeout=60)
    assert done.status == status, done.stderr.decode()
    assert said in done.stdout.decode()
