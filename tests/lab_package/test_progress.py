"""What takes long says so, once."""

from __future__ import annotations

import io
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
