"""The process of a machine whose guest runs has given up what it does not need; so have daemons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest.flat_guest import SPIN, assemble
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

INSIDE = Path(__file__).parent / "inside" / "sealed_run.py"


@pytest.mark.profile("fwb")
@pytest.mark.parametrize("sandbox", ["on", "off"])
def test_a_machines_process_is_sealed_before_its_guest_runs(
    lab_host: Callable[[str], Host], tmp_path: Path, sandbox: str
) -> None:
    host = lab_host("fwb")
    packages.install(host, ["passt"])
    guest = assemble(tmp_path, SPIN)
    run = ["pyvmm", "run", "--host", "native", "--sandbox", sandbox, "--memory", "64M"]
    command = ["python3", str(INSIDE), *run, "--net", "user", str(guest)]
    done = host.run(command, timeout=300)
    assert done.status == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    given_up = "1" if sandbox == "on" else "0"
    assert len(found["threads"]) >= 3
    assert set(found["threads"]) == {given_up}
    assert found["core"] == ["0"] or sandbox == "off"
    assert found["ram"]
    assert all("dd" in flags for flags in found["ram"])
    daemons = {name: one for name, one in found["children"].items() if name.startswith("passt")}
    assert daemons  # the broker, which is there too, is as sealed as pyvmm itself
    assert set(daemons.values()) == {"1"}
