"""The guest's console on a user's terminal, through the lab and all: typing, keys, ends, volume.

    test --- terminal --- client --- TCP --- agent --- terminal --- pyvmm run --- KVM --- guest

Most guests here are a few instructions that echo; one test talks with Linux.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.guest.flat_guest import ECHO, FLOOD, POWER_OFF, assemble, flood
from vmm.lab.guest import stock_guest
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command
from vmm.library.transcript import PATIENCE

pytestmark = pytest.mark.lab

CLIENT = """
import sys
from pathlib import Path
from vmm.lab.host import client, state
from vmm.lab.host.emulated_host import Host
directory = Path(sys.argv[1])
sys.exit(client.execute(Host(directory, state.load(directory)), sys.argv[2:]))
"""
"""Does what `pyvmm run --host lab` does once it has found its host: these have no name."""


class Window:
    """A terminal window, and what runs in it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.master, self.slave = os.openpty()
        self.cooked = termios.tcgetattr(self.slave)
        self.seen = b""
        self.program: subprocess.Popen[bytes] | None = None

    def start(self, *command: str, through: tuple[str, ...] = ()) -> None:
        """Run *command* in the lab host; *through* gets the client's command line as one word."""
        argv = [sys.executable, "-c", CLIENT, str(self.host.directory), *command]
        self.program = subprocess.Popen(
            [*through, shlex.join(argv)] if through else argv,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )

    def expect(self, pattern: bytes) -> None:
        """Wait until what was seen since the last time matches."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, (pattern, self.seen)
            assert select.select([self.master], [], [], left)[0], (pattern, self.seen)
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen[match.end() :]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def end(self) -> int:
        """Wait for the program's end; return its status. The terminal must be as it was."""
        assert self.program
        status = self.program.wait(PATIENCE)
        assert termios.tcgetattr(self.slave) == self.cooked
        return status

    def close(self) -> None:
        if self.program and self.program.poll() is None:
            self.program.kill()
            self.program.wait()
        os.close(self.slave)
        with suppress(OSError):
            os.close(self.master)


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    return lab_host("fwb")


@pytest.fixture
def window(host: Host) -> Iterator[Window]:
    window = Window(host)
    yield window
    window.close()


@pytest.fixture
def echo(tmp_path: Path) -> list[str]:
    return ["pyvmm", "run", "--memory", "64M", str(assemble(tmp_path, ECHO))]


def running(host: Host) -> list[int]:
    """Return the processes in *host* that have /dev/kvm open."""
    script = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        continue
    if "/dev/kvm" in files:
        print(pid)
"""
    done = host.run(["python3", "-c", script], timeout=PATIENCE)
    return [int(pid) for pid in done.stdout.split()]


# --- on a terminal --------------------------------------------------------------------------------


def test_keys_are_the_guests_and_the_prefix_is_pyvmms(window: Window, echo: list[str]) -> None:
    window.start(*echo)
    window.expect(b"ready:")
    assert window.is_raw
    window.type(b"hello\r\x03\x1a\x1c\x7f")
    window.expect(rb"hello\r\x03\x1a\x1c\x7f")  # ^C, ^Z and ^\ do nothing here
    window.type(b"\x01\x01")
    window.expect(rb"\x01")
    window.type(b"\x01h")
    window.expect(rb"C-a x +quit")
    window.type(b"\x01m")
    window.expect(rb"0x0040000000\.\.0x0043ffffff +64 MiB +RAM, slot 0, anonymous")
    window.expect(rb"stage 2 +forced Write-Back")
    window.expect(rb"FWB")
    window.type(b"\x01e")
    window.expect(rb"exits to pyvmm, counted for [0-9.]+ s")
    window.type(b"counted")
    window.expect(b"counted")
    window.type(b"\x01e")
    window.expect(rb"vcpu0 +[1-9]\d+  ")
    window.expect(rb"PL011 UART +[1-9]\d* +[1-9]")
    window.type(b"\x01r")
    window.expect(b"ready:")
    window.type(b"again")
    window.expect(b"again")
    window.type(b"\x01x")
    assert window.end() == 128 + signal.SIGINT
    assert running(window.host) == []


def test_the_terminal_is_given_back_when_the_guest_powers_off(
    window: Window, echo: list[str]
) -> None:
    window.start(*echo)
    window.expect(b"ready:")
    window.type(b"bye\x04")
    window.expect(b"bye")
    assert window.end() == 0


def test_the_prefix_can_be_another_key_or_none(window: Window, echo: list[str]) -> None:
    window.start(*echo, "--escape", "C-b")
    window.expect(b"ready:")
    window.type(b"\x01x")
    window.expect(rb"\x01x")
    window.type(b"\x02x")
    assert window.end() == 128 + signal.SIGINT


def test_sigterm_ends_both_ends(window: Window, echo: list[str]) -> None:
    window.start(*echo)
    window.expect(b"ready:")
    assert window.program
    window.program.send_signal(signal.SIGTERM)
    assert window.end() == 128 + signal.SIGTERM
    assert running(window.host) == []


def test_kill_9_inside_gives_the_terminal_back_outside(window: Window, echo: list[str]) -> None:
    window.start(*echo)
    window.expect(b"ready:")
    (pid,) = running(window.host)
    window.host.run(["kill", "-9", str(pid)], timeout=PATIENCE)
    assert window.end() == 128 + signal.SIGKILL


def test_kill_9_outside_ends_the_guest(window: Window, echo: list[str]) -> None:
    window.start(*echo)
    window.expect(b"ready:")
    assert window.program
    window.program.kill()
    window.program.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while running(window.host):
        assert time.monotonic() < deadline
    termios.tcsetattr(window.slave, termios.TCSANOW, window.cooked)  # as `stty sane` would


@pytest.mark.skipif(not shutil.which("script"), reason="script (bsdutils) is not installed")
def test_it_works_under_script(window: Window, echo: list[str], tmp_path: Path) -> None:
    log = tmp_path / "typescript"
    window.start(*echo, through=("script", "-q", "-e", str(log), "-c"))
    window.expect(b"ready:")
    window.type(b"\x03hello")
    window.expect(rb"\x03hello")
    window.type(b"\x01x")  # not all at once: the guest would be gone before it has echoed
    assert window.end() == 128 + signal.SIGINT
    assert b"\x03hello" in log.read_bytes()


# --- in pipes -------------------------------------------------------------------------------------


def test_pipes_pass_bytes_as_they_are(host: Host, echo: list[str]) -> None:
    every = bytes(byte for byte in range(256) if byte != 4)
    done = host.run(echo, stdin=every * 4 + b"\x04", timeout=PATIENCE)
    assert (done.status, done.stdout, done.stderr) == (0, b"ready:" + every * 4 + b"\x04", b"")


def test_a_guest_outlives_its_input(host: Host, echo: list[str]) -> None:
    with Command(host, echo) as console:
        console.expect(b"ready:")
        console.send(b"one")
        console.end_input()
        console.expect(b"one")
        time.sleep(1)
        assert console.status is None
        console.signal(signal.SIGTERM)
        assert console.finish() == 128 + signal.SIGTERM, console.story()


@pytest.mark.parametrize("streams", ["</dev/null", "<&-", ">&-", "<&- >&- 2>&-"])
def test_it_runs_without_standard_streams(host: Host, tmp_path: Path, streams: str) -> None:
    guest = assemble(tmp_path, f"ldr x0, =UART; mov w1, #'!'; strb w1, [x0]; {POWER_OFF}")
    command = f"exec pyvmm run --memory 64M {guest} {streams}"
    done = host.run(["sh", "-c", command], timeout=PATIENCE)
    assert (done.status, done.stderr) == (0, b"")
    assert done.stdout == (b"" if ">&-" in streams else b"!")


def test_a_reader_that_goes_away_does_not_end_the_guest(host: Host, tmp_path: Path) -> None:
    guest = assemble(tmp_path, FLOOD.format(size=4096))
    command = f"pyvmm run --memory 64M {guest} | head -c 16; exit ${{PIPESTATUS:-0}}"
    done = host.run(["sh", "-c", f"({command}) 2>&1"], timeout=PATIENCE)
    assert done.stdout.startswith(flood(4096)[:16])


FLOODED = 32 << 10
TRICKLED = 16 << 10


def test_no_byte_of_much_output_is_lost(host: Host, tmp_path: Path) -> None:
    """32 KiB: each byte is an exit, and an exit costs some 0.5 ms in an emulated host.

    By hand, on a machine with twice the load it has cores for: 1 MiB from this guest in 13
    minutes and from Linux (6.12, nofwb) in 39, every byte right.
    """
    guest = assemble(tmp_path, FLOOD.format(size=FLOODED))
    done = host.run(["pyvmm", "run", "--memory", "64M", str(guest)], timeout=PATIENCE)
    assert (done.status, done.stderr) == (0, b"")
    assert done.stdout == flood(FLOODED)


def test_a_slow_reader_loses_nothing(host: Host, tmp_path: Path) -> None:
    guest = assemble(tmp_path, FLOOD.format(size=TRICKLED))
    reader = "import sys, time; time.sleep(5); sys.stdout.buffer.write(sys.stdin.buffer.read())"
    command = f"pyvmm run --memory 64M {guest} | python3 -c {shlex.quote(reader)}"
    done = host.run(["sh", "-c", command], timeout=PATIENCE)
    assert done.stdout == flood(TRICKLED)


# --- Linux ----------------------------------------------------------------------------------------


def test_a_session_with_linux(host: Host) -> None:
    command = [
        "pyvmm",
        "run",
        "--initrd",
        str(stock_guest.initramfs()),
        str(stock_guest.kernel("6.12")),
    ]
    with Command(host, [*command, "--cmdline", "console=ttyAMA0 quiet"], terminal=True) as console:
        prompt = rb"guest:\S*# "
        console.expect(prompt)
        console.send(b"echo $((6 * 7))\r")
        console.expect(rb"\n42\r\n")
        console.expect(prompt)

        console.send(b"sleep 1000; echo status $?\r")
        console.expect(rb"\n")
        time.sleep(1)
        console.send(b"\x03")
        console.expect(prompt)
        console.send(b"echo status $?\r")
        console.expect(rb"\nstatus 130\r\n")
        console.expect(prompt)

        numbers = b"".join(b"%d\r\n" % number for number in range(10_000, 12_000))
        console.send(b"seq 10000 11999; echo end\r")
        console.expect(rb"\nend\r\n")
        assert numbers in console.output, console.story()

        pasted = b"".join(b"%04d\n" % number for number in range(1000))
        console.send(b"stty -icanon -echo; echo go; head -c 5000 | md5sum; stty sane\r")
        console.expect(rb"\ngo\r\n")
        console.send(pasted)
        digest = hashlib.md5(pasted).hexdigest()  # noqa: S324  (busybox has it)
        console.expect(rb"([0-9a-f]{32})  -")
        assert digest.encode() in console.output, console.story()
        console.expect(prompt)

        console.send(b"\x01sh")
        console.expect(rb"sysrq: HELP")
        console.send(b"\r")
        console.expect(prompt)
        console.send(b"\x01x")
        assert console.finish() == 128 + signal.SIGINT, console.story()
