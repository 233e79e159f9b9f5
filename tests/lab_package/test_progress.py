"""Progress is shown on stderr, once per step."""

from __future__ import annotations

import io
import re
import sys

import pytest

from vmm.lab.progress import step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_step_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with step("unpacking") as reach:
        reach(10)
        reach(90)
    assert capsys.readouterr().err == "pyvmm: unpacking\n"


def test_on_a_terminal_a_bar_fills_and_never_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step("unpacking", total=50) as reach:
        for done in (10, 25, 20, 60):
            reach(done)
    shown = terminal.getvalue()
    assert "pyvmm: unpacking" in shown
    assert "50%" in shown
    assert "40%" not in shown.partition("50%")[2]
    assert "100%" in shown


def test_nothing_goes_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with step("unpacking"):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", [30, 50, 80, 200])
def test_a_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    with step("building the lab's mainline kernel from linux-source-7.3_7.3.4-1~bpo13+1") as reach:
        reach(50)
    shown = re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", terminal.getvalue())
    assert "50%" in shown
    assert max(map(len, re.split(r"[\r\n]", shown))) < columns
