"""The terminal is restored, whatever happens: separate programs on pseudo-terminals."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0
"""Seconds until a test gives up."""

# A guest that answers each key with the same key in brackets, until C-a x.
SESSION = """
import os, signal, sys
from vmm.terminal.console import StdioConsole
from vmm.loop import Loop

class Guest:
    def __init__(self):
        self.output = bytearray(b"ready\\r\\n")
        self.eventfd = os.eventfd(1)
    def fileno(self):
        return self.eventfd
    def drain(self, limit):
        if self.output:
            os.eventfd_read(self.eventfd)
        data, self.output = bytes(self.output), bytearray()
        return data
    def receive(self, data):
        if not self.output:
            os.eventfd_write(self.eventfd, 1)
        self.output += b"[" + data + b"]"
        return len(data)
    def receive_break(self):
        return True

def fail():
    raise ArithmeticError

def main(ending):
    guest = Guest()
    with Loop() as loop:
        if ending == "loop":
            loop.add_signal(signal.SIGTERM, loop.stop)
        console = StdioConsole(loop, guest, guest, stdin=0, stdout=1)
        console.on_quit = {"error": fail, "exit": sys.exit}.get(ending, loop.stop)
        if ending == "forgotten":
            console.__enter__()
            loop.run()
            return
        with console:
            loop.run()
"""

ALONE = (
    SESSION
    + """
os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session's leader gets its terminal this way
main(sys.argv[1])
"""
)

# What a shell with job control does, in one scripted session. argv: the terminal's master side.
SHELL = (
    SESSION
    + """
import select, termios, time

os.close(os.open(os.ttyname(0), os.O_RDWR))
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
master = int(sys.argv[1])
cooked = termios.tcgetattr(0)

def expect(text):
    seen = b""
    while text not in seen:
        assert select.select([master], [], [], 20)[0], (text, seen)
        seen += os.read(master, 1000)

def is_raw():
    return not termios.tcgetattr(0)[3] & termios.ICANON

def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

def state(job):
    return open(f"/proc/{job}/stat").read().rpartition(")")[2].split()[0]

job = os.fork()
if not job:
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.setpgid(0, 0)
    main("plain")
    os._exit(0)

# In the background: it writes, leaves the terminal as it is, and reads none of the shell's input.
expect(b"ready")
assert not is_raw()
os.write(master, b"for the shell\\n")
time.sleep(0.2)
assert state(job) in "SR"
assert os.read(0, 100) == b"for the shell\\n"

# fg
os.tcsetpgrp(0, job)
os.killpg(job, signal.SIGCONT)
wait_for(is_raw)
os.write(master, b"a")
expect(b"[a]")

# Somebody sends SIGTSTP: it stops, and the shell has its terminal back.
os.killpg(job, signal.SIGTSTP)
assert os.WIFSTOPPED(os.waitpid(job, os.WUNTRACED)[1])
assert termios.tcgetattr(0) == cooked
os.tcsetpgrp(0, os.getpgrp())

# fg
os.tcsetpgrp(0, job)
os.killpg(job, signal.SIGCONT)
wait_for(is_raw)
os.write(master, b"b")
expect(b"[b]")

# SIGSTOP can't be caught: the shell repairs the modes by itself, and gets them raw again.
os.killpg(job, signal.SIGSTOP)
assert os.WIFSTOPPED(os.waitpid(job, os.WUNTRACED)[1])
os.tcsetpgrp(0, os.getpgrp())
termios.tcsetattr(0, termios.TCSANOW, cooked)
os.tcsetpgrp(0, job)
os.killpg(job, signal.SIGCONT)
wait_for(is_raw)

# Stopped once more and sent to the background to end there: the shell's modes are not touched.
os.killpg(job, signal.SIGSTOP)
assert os.WIFSTOPPED(os.waitpid(job, os.WUNTRACED)[1])
os.tcsetpgrp(0, os.getpgrp())
editing = list(cooked)
editing[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, editing)
os.killpg(job, signal.SIGTERM)
os.killpg(job, signal.SIGCONT)
assert os.WTERMSIG(os.waitpid(job, 0)[1]) == signal.SIGTERM
assert termios.tcgetattr(0) == editing
print("shell is content", file=sys.stderr)
"""
)


class Pty:
    """A pseudo-terminal and the programs on it."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.cooked = termios.tcgetattr(self.slave)
        self.seen = b""

    def start(self, *command: str, keep: bool = False) -> subprocess.Popen[bytes]:
        os.set_inheritable(self.master, keep)
        return subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            close_fds=not keep,
        )

    def expect(self, text: bytes) -> None:
        while text not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self.master, 1000)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.cooked


@pytest.fixture
def pty() -> Iterator[Pty]:
    pty = Pty()
    yield pty
    os.close(pty.slave)
    with contextlib.suppress(OSError):
        os.close(pty.master)


def session(pty: Pty, ending: str = "plain") -> subprocess.Popen[bytes]:
    program = pty.start(sys.executable, "-c", ALONE, ending)
    pty.expect(b"ready")
    pty.type(b"k")
    pty.expect(b"[k]")
    assert pty.is_raw()
    return program


def finish(program: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, complaints = program.communicate(timeout=PATIENCE)
    return program.returncode, complaints.decode()


def test_quitting_gives_the_terminal_back(pty: Pty) -> None:
    program = session(pty)
    pty.type(b"\x01x")
    assert finish(program) == (0, "")
    assert pty.is_as_before()


def test_a_sigcont_out_of_the_blue_changes_nothing(pty: Pty) -> None:
    program = session(pty)
    program.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert pty.is_raw()
    pty.type(b"\x01x")
    assert finish(program) == (0, "")
    assert pty.is_as_before()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_deadly_signal_nobody_handles_gives_the_terminal_back_and_kills(
    pty: Pty, signum: signal.Signals
) -> None:
    program = session(pty)
    program.send_signal(signum)
    assert finish(program) == (-signum, "")
    assert pty.is_as_before()


def test_a_signal_that_the_loop_handles_gives_the_terminal_back(pty: Pty) -> None:
    program = session(pty, "loop")
    program.send_signal(signal.SIGTERM)
    assert finish(program) == (0, "")
    assert pty.is_as_before()


def test_sigint_gives_the_terminal_back(pty: Pty) -> None:
    program = session(pty)
    program.send_signal(signal.SIGINT)
    code, complaints = finish(program)
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in complaints
    assert pty.is_as_before()


@pytest.mark.parametrize(
    ("ending", "code", "complaint"),
    [("error", 1, "ArithmeticError"), ("exit", 0, ""), ("forgotten", 0, "")],
)
def test_however_python_ends_the_terminal_comes_back(
    pty: Pty, ending: str, code: int, complaint: str
) -> None:
    program = session(pty, ending)
    pty.type(b"\x01x")
    returncode, complaints = finish(program)
    assert returncode == code
    assert complaint in complaints
    assert pty.is_as_before()


def test_a_terminal_window_that_is_closed_ends_the_program(pty: Pty) -> None:
    program = session(pty)
    os.close(pty.master)
    assert finish(program)[0] == -signal.SIGHUP


def test_job_control_works_as_for_any_program(pty: Pty) -> None:
    shell = pty.start(sys.executable, "-c", SHELL, str(pty.master), keep=True)
    assert finish(shell) == (0, "shell is content\n")


@pytest.mark.skipif(not shutil.which("script"), reason="script (bsdutils) is not installed")
def test_it_works_under_script(pty: Pty, tmp_path: Path) -> None:
    path = tmp_path / "session.py"
    path.write_text(ALONE)
    program = pty.start("script", "-qec", f"{sys.executable} {path} plain", str(tmp_path / "log"))
    pty.expect(b"ready")
    pty.type(b"\x03")
    pty.expect(b"[\x03]")
    pty.type(b"\x01x")
    assert finish(program)[0] == 0
    assert pty.is_as_before()
    assert b"[\x03]" in (tmp_path / "log").read_bytes()


@pytest.mark.parametrize("closing", ["<&-", ">&-", "<&- >&-", "</dev/null", "</dev/null >&-"])
def test_it_runs_with_its_standard_descriptors_closed(closing: str) -> None:
    check = """
from vmm.terminal.console import standard_input, standard_output
with Loop() as loop:
    guest = Guest()
    guest.receive(b"x")
    with StdioConsole(
        loop, guest, guest, stdin=standard_input(), stdout=standard_output()
    ) as console:
        console.flush()
"""
    command = ["sh", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, SESSION + check]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if ">&-" in closing else b"ready\r\n[x]")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_kill_9_leaves_a_raw_terminal_that_stty_sane_repairs(pty: Pty) -> None:
    program = session(pty)
    program.kill()
    assert finish(program)[0] == -signal.SIGKILL
    assert pty.is_raw()
    subprocess.run(["stty", "sane"], stdin=pty.slave, check=True)
    wait_for(lambda: not pty.is_raw())
