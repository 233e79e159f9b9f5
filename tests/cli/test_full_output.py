"""What pyvmm prints and cannot write is one line and status 3, whatever the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.cli import COMMANDS
from vmm.errors import HostError
from vmm.lab import protocol
from vmm.lab.host import client

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {ROOT / "examples/test_kernel.py"})
PYVMM = [sys.executable, "-c", "from vmm.cli import main; main()"]
FULL = "pyvmm: standard output: No space left on device; free some, or write elsewhere\n"


def to_full(
    command: list[str], *, stderr: bool = False, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    with Path("/dev/full").open("w") as full:
        return subprocess.run(
            command,
            check=False,
            stdout=full,
            stderr=full if stderr else subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["lab", "profiles"],
        ["lab", "profiles", "--json"],
        ["lab", "status", "--json"],
        ["help"],
        ["help", "--disk"],
        ["vfio", "list", "--no-open", "--host", "native", "--json"],
        *([command, "--help"] for command in COMMANDS),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line_and_status_3(words: list[str], unbuffered: str) -> None:
    done = to_full([*PYVMM, *words], unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (3, FULL)


def test_an_error_that_cannot_be_told_keeps_its_status() -> None:
    assert to_full([*PYVMM, "lab", "up", "moon"], stderr=True).returncode == 2
    assert to_full([*PYVMM, "--help"], stderr=True).returncode == 3


def test_an_error_of_another_file_is_not_blamed_on_the_output() -> None:
    """It is a bug that it was not reported where it happened: the traceback stays."""
    script = (
        "import vmm.cli, os; vmm.cli.pyvmm.main = lambda **_: os.listdir('/none'); vmm.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 1
    assert b"FileNotFoundError" in done.stderr


def test_a_pipe_without_a_reader_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PYVMM, "help"], check=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# --- in the lab -------------------------------------------------------------------------------


def test_the_output_of_a_lab_host_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Path("/dev/full").open("wb") as full:
        number = full.fileno()
        write = os.write
        monkeypatch.setattr(os, "write", lambda _fd, data: write(number, data))
        with pytest.raises(HostError) as caught:
            client._write(protocol.OUTPUT, b"x")
    assert f"pyvmm: {caught.value}\n" == FULL


def test_a_reader_that_has_gone_ends_the_lab_hosts_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    write = os.write
    monkeypatch.setattr(os, "write", lambda _fd, data: write(writer, data))
    with pytest.raises(BrokenPipeError):
        client._write(protocol.OUTPUT, b"x")
    os.close(writer)


# --- examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize("words", [[], ["moon", "4"], ["0000:00:10.0", "x"]], ids=" ".join)
def test_examples_have_no_tracebacks(example: Path, words: list[str]) -> None:
    """There is no KVM for arm64 here, or none at all, or no such device."""
    done = to_full([sys.executable, str(example), *words])
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
