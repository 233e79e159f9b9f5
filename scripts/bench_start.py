"""Measure the start of ``pyvmm run``: its imports, and the memory that is then in use.

Measured by asking for a guest image that does not exist: all is imported, KVM is opened, and
then there is an error. A guest that runs is measured in the emulated host (bench_lab.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench_report import Figure, Report, median, quartiles, undisturbed

from vmm.errors import EXIT_HOST, EXIT_USER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

GROUP = "start (natively)"
ROUNDS = 30

NOTHING = "pass"
RUN = """
import os, sys
arm64 = os.uname_result((*os.uname()[:4], "aarch64"))
os.uname = lambda: arm64
sys.argv = ["pyvmm", "run", "--host", "native", "/no/such/image"]
from vmm.cli import main
main()
"""
EXPECTED = {NOTHING: (0,), RUN: (EXIT_USER, EXIT_HOST)}
RESIDENT = """
try:
    exec(sys.stdin.read())
except SystemExit:
    pass
with open("/proc/self/smaps_rollup") as file:
    print(next(line.split()[1] for line in file if line.startswith("Rss:")))
"""


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures for imports and resident memory to *report*."""
    rounds = options.rounds or ROUNDS
    with tempfile.TemporaryDirectory() as directory:
        # With .pyc files, as an installed package has them, whatever this shell says.
        env = {name: value for name, value in os.environ.items() if "BYTECODE" not in name}
        env["PYTHONPYCACHEPREFIX"] = directory
        env["PYTHONPATH"] = str(Path(__file__).parents[1])
        for code in (NOTHING, RUN):
            _seconds(code, env)
        laps = [(_seconds(NOTHING, env), _seconds(RUN, env)) for _ in range(rounds)]
        resident = [_resident(env) / 1024 for _ in range(3)]
    low, _, high = quartiles([1e3 * (whole - nothing) for nothing, whole in laps])
    nothing, whole = (undisturbed(column) for column in zip(*laps, strict=True))
    report.add(
        Figure(
            group=GROUP,
            name="imports for pyvmm run",
            value=1e3 * (whole - nothing),
            unit="ms",
            at_most=150,
            low=low,
            high=high,
            samples=rounds,
            note=f"beyond the {1e3 * nothing:.0f} ms of Python's own start",
        ),
        median(
            resident,
            group=GROUP,
            name="resident before there is a guest",
            unit="MiB",
            at_most=40,
            note="libraries shared with others included",
        ),
    )


def _seconds(code: str, env: Mapping[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, check=False
    )
    taken = time.perf_counter() - began
    if done.returncode not in EXPECTED[code]:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return taken


def _resident(env: Mapping[str, str]) -> int:
    """Return the KiB that are resident when `RUN` has ended, in the process itself."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys{RESIDENT}"],
        env=env,
        input=RUN,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
