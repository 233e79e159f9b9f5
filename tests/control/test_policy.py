"""The control thread has a seccomp filter of its own, which lets it do its work and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_control_thread_needs_no_call_that_its_filter_refuses() -> None:
    """The tests of the server, in a process that is confined but for what it is told to log."""
    tests = [str(HERE / f"test_{name}.py") for name in ("server", "consoles", "hostile_client")]
    # One starts a program as another user, which no policy lets go on.
    options = ["-q", "-p", "no:cacheprovider", "-k", "not another_user"]
    done = subprocess.run(
        [sys.executable, str(HERE / "noted.py"), "-W", "ignore", *options, *tests],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["control"], []]
