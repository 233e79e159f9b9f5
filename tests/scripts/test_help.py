"""``--help`` of a script prints its help, and does nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
WRITTEN = [SCRIPTS.parent / "vmm" / "house.svg", SCRIPTS / "man"]
"""What scripts write when they are asked for nothing else."""


@pytest.mark.parametrize(
    "name",
    [
        *("bench", "fuzz", "manual", "picture", "probe-cacheable-pfnmap", "quickstart", "test"),
        "wheels",
    ],
)
def test_help_is_all_that_happens(name: str, tmp_path: Path) -> None:
    script = SCRIPTS / name
    interpreter, title = script.read_text().splitlines()[:2]
    python = "python" in interpreter
    before = [path.stat().st_mtime_ns for path in WRITTEN]
    done = subprocess.run(
        [sys.executable if python else "/bin/bash", script, "--help"],
        check=False,
        capture_output=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert title.strip('#r" ')[:30] in done.stdout
    assert [path.stat().st_mtime_ns for path in WRITTEN] == before
    assert not list(tmp_path.iterdir())
