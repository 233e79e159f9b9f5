"""A real guest stands still while its machine is paused, and does not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import COUNT, assemble
from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

PAUSED = Path(__file__).parent / "inside" / "paused.py"
PATIENCE = 300.0


@pytest.mark.parametrize("cpus", [2, 4])
def test_no_vcpu_counts_while_the_machine_is_paused(
    lab_host: Callable[[str], Host], tmp_path: Path, cpus: int
) -> None:
    guest = assemble(tmp_path, COUNT.format(cpus=cpus))
    command = ["python3", str(PAUSED), str(guest), str(cpus), "3"]
    done = lab_host("fwb").run(command, timeout=PATIENCE)
    assert done.status == 0, done.stderr.decode()
    for found in json.loads(done.stdout):
        assert found["still"], found
        assert found["paused"] < found["running"] / 2, "virtual time went on"
