"""scripts/probe-cacheable-pfnmap on machines that it has nothing to tell about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "probe-cacheable-pfnmap"
AS = """
import os, runpy, sys
class Machine:
    machine = sys.argv.pop(1)
os.uname = lambda: Machine
opened = os.open
def open_(path, *rest, **named):
    assert path != "/dev/kvm", "it probes"
    return opened(path, *rest, **named)
os.open = open_
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def run(machine: str, *arguments: str, stdout: int = subprocess.PIPE) -> tuple[int, str, str]:
    """Run the script where `uname -m` is *machine*; opening /dev/kvm fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", AS, machine, str(SCRIPT), *arguments],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout or "", done.stderr


def test_on_x86_64_it_concludes_nothing() -> None:
    """There, capability 243 and flag bit 3 are unknown for another reason: legacy is not said."""
    status, out, _ = run("x86_64")
    assert (status, out) == (3, "this machine is x86_64, not arm64: there is nothing to ask\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_does_not_probe(option: str) -> None:
    status, out, _ = run("aarch64", option)
    assert status == 0
    assert "exit 2" in out


def test_a_word_that_it_does_not_know_does_not_probe_either() -> None:
    status, out, err = run("aarch64", "--json")
    assert (status, out) == (3, "")
    assert err == "probe-cacheable-pfnmap: --json: it takes no arguments but --help\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        status, _, err = run("x86_64", *arguments, stdout=full.fileno())
    assert status == 3
    assert err == "probe-cacheable-pfnmap: standard output: No space left on device\n"
