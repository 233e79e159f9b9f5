"""What a guest makes devices do, in a confined process: nothing is denied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


def test_disks_and_daemons_need_nothing_that_is_denied(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"image{number}").write_bytes(bytes(1 << 20))
    done = subprocess.run(
        [sys.executable, "tests/virtio/confined.py", str(tmp_path / "image")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], []]
