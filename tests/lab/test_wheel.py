"""The wheel for arm64, unpacked in an arm64 host."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.lab.host.session import inside

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]


def test_the_wheel_for_arm64_runs_there(lab_host: Callable[[str], Host], tmp_path: Path) -> None:
    script = ROOT / "scripts/build_wheels.py"
    subprocess.run([sys.executable, script, "--dist", tmp_path], check=True)
    (wheel,) = tmp_path.glob("*_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    done = lab_host("fwb").run(
        [
            "python3",
            "-c",
            "import vmm._native, vmm.cli; print(vmm._native.__file__); vmm.cli.main()",
            "--version",
        ],
        cwd=tmp_path,  # not a checkout, whose own vmm would be found
        env={"PYTHONPATH": inside(tmp_path / "unpacked")},
        tree=False,
        timeout=120,
    )
    assert done.status == 0, done.stderr.decode()
    where, version = done.stdout.decode().splitlines()
    assert where.endswith("unpacked/vmm/_native.abi3.so")
    assert version.startswith("pyvmm, version ")
