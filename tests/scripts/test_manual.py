"""The man pages say what the command line says, and its completion completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from vmm.cli import COMMANDS

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_pages_are_those_of_todays_command_line() -> None:
    subprocess.run([sys.executable, SCRIPTS / "manual", "--check"], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page(command: str) -> None:
    page = (SCRIPTS / "man" / f"pyvmm-{command}.1").read_text()
    assert page.startswith(f'.TH "PYVMM {command.upper()}" "1"')


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("ver", {"verify"}), ("run --memo", {"--memory", "--memory-dump", "--memory-write-back"})],
)
def test_a_shell_completes_commands_and_options(typed: str, completed: set[str]) -> None:
    words = f"pyvmm {typed}"
    env = {
        **os.environ,
        "_PYVMM_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    script = "from vmm.cli import pyvmm; pyvmm(prog_name='pyvmm')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, check=False, capture_output=True, text=True
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == completed
    assert get_completion_class("bash")
