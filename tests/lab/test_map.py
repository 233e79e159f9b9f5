"""`pyvmm map` shows all memory of a machine that it does not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF
from vmm.lab.host.session import inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


def test_files_and_flash_are_ranges_as_ram_is(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    (tmp_path / "code").write_bytes(bytes(range(256)) * 256)
    command = ["pyvmm", "map", "--host", "native", "--firmware", inside(tmp_path / "code")]
    command += ["--pmem", "/run/tmp/memory,size=2M", "--memory", "64M"]
    host = lab_host("fwb")
    shown = host.run(command, timeout=120)
    assert shown.status == 0, shown.stderr
    lines = shown.stdout.decode().splitlines()
    heads = [line for line in lines if line.startswith("0x")]
    assert any("64 MiB  RAM, slot 0" in line for line in heads)
    assert any("2 MiB  pmem, slot 1" in line for line in heads)
    assert any("flash: code, slot" in line for line in heads)
    assert any("PL011 UART: trapped" in line for line in heads)
    found = json.loads(host.run([*command, "--json"], timeout=120).stdout)
    assert {"RAM", "pmem", "flash: code"} <= {entry["name"] for entry in found}
    assert {entry["stage2"] for entry in found} == {"forced Write-Back"}


@pytest.mark.kernels
@pytest.mark.profile("gh200")
def test_a_passed_through_device_is_where_a_guest_would_have_it(
    lab_host: Callable[[str], Host],
) -> None:
    """And it is as it was once the map is printed."""
    host = lab_host("gh200")
    command = ["pyvmm", "map", "--host", "native", "--vfio", BDF, "--json"]
    for _ in range(2):
        shown = host.run(command, timeout=300)
        assert shown.status == 0, shown.stderr
        found = {entry["name"]: entry for entry in json.loads(shown.stdout)}
        memory, resmem = found[f"{BDF} region 4"], found[f"{BDF} region 2"]
        assert memory["stage1"] == "cacheable"
        assert memory["stage2"] == "forced Write-Back"
        assert resmem["stage2"] == "not cacheable"
        for each in (memory, resmem):
            assert each["base"] % each["size"] == 0
            assert each["base"] >= 1 << 32
