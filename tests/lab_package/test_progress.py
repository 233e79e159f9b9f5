"""Progress is shown on stderr, once per step."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import sys
import termios
import time

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
    monkeypatch.setattr("vmm.lab.progress._INTERVAL", 0.0)
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


def screen(leader: int) -> str:
    """Return all that has arrived on the terminal."""
    os.set_blocking(leader, False)
    shown = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            shown += os.read(leader, 1 << 16)
    return shown.decode()


LONG = "building the lab's mainline kernel from linux-source-7.3_7.3.4-1~bpo13+1"


@pytest.mark.parametrize("columns", [1, 4, 10, 30, 50, 80, 200])
@pytest.mark.parametrize("label", [LONG, "unpacking"])
def test_a_bar_fits_any_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, label: str) -> None:
    """Stderr's is meant: `pyvmm lab up | cat` has a stdout without a width, and $COLUMNS is old."""
    now = 0.0
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setenv("COLUMNS", "300")
    with open(follower, "w", encoding="utf-8") as terminal:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(time, "monotonic", lambda: now)
        with step(label, total=100000) as reach:
            for each in range(1, 40):
                now += 3600.0  # the rest takes days: that is long to write, too
                reach(each)
        terminal.flush()
        shown = screen(leader)
    os.close(leader)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", shown))
    assert max(map(len, lines)) < max(columns, 2), lines
    assert shown.count("\n") == 1, "one line, however often it is drawn"
    if columns >= 10:
        assert "100%" in shown


def test_a_bar_follows_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with open(follower, "w", encoding="utf-8") as terminal:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", terminal)
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        with step(LONG):
            screen(leader)
            fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        shown = screen(leader)
    os.close(leader)
    assert len(shown.replace("\x1b[K", "").strip()) < 40
    assert "100%" in shown


def test_a_bar_tells_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with step("compiling") as reach:
        now = 90.0
        reach(50)
    assert "50%  00:01:30" in terminal.getvalue()
