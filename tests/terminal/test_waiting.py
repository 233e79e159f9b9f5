"""A line while the user waits: on a terminal only, after a second, gone without a trace."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from vmm.terminal import waiting
from vmm.terminal.waiting import ERASE, WaitingLine

COLUMNS = 40


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """``shown()`` is what has come to the terminal that stderr is."""
    monkeypatch.setattr(waiting, "DELAY", 0.05)
    leader, follower = os.openpty()
    os.set_blocking(leader, False)
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    seen = bytearray()

    def shown() -> str:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(leader, 1 << 12))
        return seen.decode()

    with open(follower, "w", encoding="utf-8") as terminal:  # noqa: PTH123
        # Not sys.stderr: pytest replaces that between a fixture and its test.
        monkeypatch.setattr(waiting, "sys", SimpleNamespace(stderr=terminal))
        yield shown
    os.close(leader)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_line_comes_after_a_while_and_is_erased(shown: Callable[[], str]) -> None:
    with WaitingLine() as line:
        line.begin("waiting for the guest")
        assert shown() == ""
        until(lambda: shown().endswith("pyvmm: waiting for the guest"))
        line.end()
        assert shown() == f"{ERASE}pyvmm: waiting for the guest{ERASE}"
        line.end()
    assert shown().count(ERASE) == 2


def test_what_comes_at_once_needs_no_line(shown: Callable[[], str]) -> None:
    with WaitingLine() as line:
        line.begin("waiting for the guest")
        line.end()
        time.sleep(0.2)
    assert shown() == ""


def test_an_error_erases_it(shown: Callable[[], str]) -> None:
    with contextlib.suppress(ValueError), WaitingLine() as line:
        line.begin("waiting")
        until(lambda: "waiting" in shown())
        raise ValueError
    assert shown().endswith(ERASE)


def test_a_new_line_takes_the_place_of_the_old(shown: Callable[[], str]) -> None:
    with WaitingLine() as line:
        line.begin("one")
        until(lambda: "one" in shown())
        line.begin("two")
        until(lambda: "two" in shown())
    assert shown() == f"{ERASE}pyvmm: one{ERASE}{ERASE}pyvmm: two{ERASE}"


def test_it_fits_the_terminal(shown: Callable[[], str]) -> None:
    with WaitingLine() as line:
        line.begin("x" * 100)
        until(shown)
    assert len(shown().replace(ERASE, "")) == COLUMNS - 1


def test_a_terminal_whose_size_nobody_knows_has_80_columns(
    shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _fd: os.terminal_size((0, 0)))
    with WaitingLine() as line:
        line.begin("x" * 100)
        until(shown)
    assert len(shown().replace(ERASE, "")) == 79


def test_who_reads_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "DELAY", 0.0)
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with WaitingLine() as line:
        line.begin("waiting")
        time.sleep(0.1)
    assert pipe.getvalue() == ""
