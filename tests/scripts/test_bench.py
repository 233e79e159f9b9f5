"""scripts/bench runs and prints figures; no figure makes a test fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = str(Path(__file__).parents[2] / "scripts/bench")


def bench(*arguments: str) -> str:
    command = [sys.executable, BENCH, "--rounds", "2", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_table_has_a_line_for_each_figure_and_says_how_noisy_the_machine_is() -> None:
    lines = bench("start").splitlines()
    assert lines[1].startswith("noise: load ")
    assert any("imports for pyvmm run" in line and " ms " in line for line in lines)


def test_json_has_targets_and_whether_they_are_met() -> None:
    report = json.loads(bench("--json", "bulk"))
    figures = {figure["name"]: figure for figure in report["figures"]}
    copy = figures["copy into the guest, 64 MiB at a time"]
    assert copy["at_least"] == 0.9
    assert copy["met"] == (copy["value"] >= 0.9)


def test_exits_and_kicks_are_measured_or_it_says_why_not() -> None:
    report = json.loads(bench("--json", "exits"))
    assert len(report["figures"]) == 9 or report["notes"]
