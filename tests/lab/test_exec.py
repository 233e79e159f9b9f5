"""Commands in a lab host that is kept up, through the command line: `pyvmm lab exec`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmm.lab import protocol
from vmm.lab.guest import stock_guest
from vmm.lab.host import state
from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

PROFILE = "fwb"
PYVMM = [sys.executable, "-c", "from vmm.cli import main; main()"]
EXEC = [*PYVMM, "lab", "exec", PROFILE, "--"]


def lab(*arguments: str) -> str:
    done = subprocess.run([*PYVMM, "lab", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def run(
    command: list[str], stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*EXEC, *command], check=False, input=stdin, capture_output=True, cwd=cwd, timeout=120
    )


def sh(script: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run(["sh", "-c", script], stdin)


def eventually(condition: object, seconds: float = 30) -> None:
    """Wait until *condition* returns true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_status_is_the_commands(kept: None, status: int) -> None:
    assert sh(f"exit {status}").returncode == status


def test_guest_memory_that_daemons_share_has_huge_pages(kept: None) -> None:
    script = (
        "from vmm.memory import Mapping\n"
        "with Mapping.memfd(64 << 20) as mapping:\n"
        "    mapping.view[32 << 20] = 1\n"
        "    print(open('/proc/self/smaps_rollup').read())\n"
    )
    done = run(["python3", "-c", script])
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(b"ShmemPmdMapped:"))
    assert int(line.split()[1]) >= 2048


def test_what_run_with_a_command_imports_is_there_before_it_asks(kept: None) -> None:
    script = (
        "import sys; print({'vmm.virtio.fs.open', 'vmm.machine.guest_command'} <= {*sys.modules})"
    )
    eventually(lambda: run(["python3", "-c", script]).stdout == b"True\n")


def test_a_signals_status_is_128_plus_its_number(kept: None) -> None:
    assert sh("kill -9 $$").returncode == 128 + 9


def test_a_command_that_is_not_there_is_status_127_and_one_line(kept: None) -> None:
    done = run(["no-such-command"])
    assert done.returncode == 127
    assert done.stderr == (b"pyvmm: in the lab host: no-such-command: No such file or directory\n")


def test_stdout_and_stderr_stay_apart(kept: None) -> None:
    done = sh("echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_ten_binary_megabytes_go_in_and_come_out(kept: None) -> None:
    data = bytes(range(256)) * (10 << 12)
    assert run(["cat"], data).stdout == data


def test_input_that_nobody_reads_holds_up_nothing(kept: None) -> None:
    assert sh("exit 7", bytes(1 << 20)).returncode == 7


def test_output_that_nobody_reads_ends_the_command(kept: None) -> None:
    with subprocess.Popen([*EXEC, "yes", "broken-pipe"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1000)
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
    eventually(lambda: not processes("yes broken-pipe"))


def test_the_current_directory_is_visible_and_files_belong_to_the_caller(
    kept: None, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("from outside")
    done = run(["sh", "-c", "pwd; cat in; echo from inside > out"], cwd=tmp_path)
    assert done.stdout.decode() == f"{tmp_path}\nfrom outside"
    assert (tmp_path / "out").read_text() == "from inside\n"
    assert (tmp_path / "out").stat().st_uid == os.getuid()


def test_nothing_else_can_be_written(kept: None, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for directory in (here, other):
        directory.mkdir()
    own = state.hosts_directory() / PROFILE / "state.json"
    script = 'for each; do echo x >> "$each"; done; echo x > file && echo wrote'
    refused = [other / "file", own, "/host/proc/sys/kernel/hostname", f"/run/mapped{other}/file"]
    done = run(["sh", "-c", script, "sh", *map(str, refused)], cwd=here)
    assert done.stderr.count(b"Read-only file system") == len(refused), done.stderr
    assert done.stdout == b"wrote\n"
    assert (here / "file").read_text() == "x\n"
    assert not list(other.iterdir())


def test_what_is_written_inside_is_seen_outside_at_once(kept: None, tmp_path: Path) -> None:
    script = "exec >> log; echo one; read line; echo two; read line"
    with subprocess.Popen(
        [*EXEC, "sh", "-c", script], stdin=subprocess.PIPE, cwd=tmp_path
    ) as client:
        assert client.stdin
        for expected in ("one\n", "one\ntwo\n"):
            eventually(
                lambda text=expected: (
                    (tmp_path / "log").exists() and (tmp_path / "log").read_text() == text
                )
            )
            client.stdin.write(b"\n")
            client.stdin.flush()
        client.stdin.close()
        assert client.wait(60) == 0


def test_what_is_changed_outside_is_seen_inside_when_opened_anew(
    kept: None, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    for text in ("one", "two", "two and three", "4"):
        file.write_text(text)
        assert run(["cat", str(file)]).stdout.decode() == text


def test_a_directory_that_the_host_has_itself_is_below_host(kept: None) -> None:
    done = run(["pwd"], cwd=Path("/usr"))
    assert done.stdout == b"/host/usr\n"


def test_the_working_trees_vmm_is_installed_there(kept: None) -> None:
    script = "import platform, vmm._native; print(platform.machine(), vmm._native.__file__)"
    for python in ("python3", "/usr/bin/python3"):  # by the zygote, and started anew
        done = run([python, "-c", script])
        machine, path = done.stdout.decode().split()
        assert machine == "aarch64"
        assert path.startswith("/run/pyvmm/")


def test_python_forked_is_like_python_started(kept: None, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import atexit, sys, threading\n"
        "atexit.register(print, 'exit')\n"
        "threading.Thread(target=print, args=('thread',)).start()\n"
        "print(__name__, sys.argv[1:], sys.stdin.read())\n"
        "print('err', file=sys.stderr)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    forked, started = (
        run([python, str(program), "5", "x"], b"input")
        for python in ("python3", "/usr/bin/python3")
    )
    assert forked.stdout.split() == started.stdout.split()
    assert forked.stdout.endswith(b"exit\n")
    assert forked.stderr == started.stderr == b"err\n"
    assert forked.returncode == started.returncode == 5


def test_a_traceback_starts_at_the_program(kept: None) -> None:
    forked, started = (
        run([python, "-c", "def f(): 1 / 0\nf()"]) for python in ("python3", "/usr/bin/python3")
    )
    assert forked.returncode == started.returncode == 1
    assert b"ZeroDivisionError" in forked.stderr
    assert b"zygote" not in forked.stderr
    assert b"runpy" not in forked.stderr


def test_commands_run_side_by_side(kept: None) -> None:
    def one(number: int) -> bytes:
        return sh(f"sleep 1; cat; echo {number}", b"%d " % number).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [b"%d %d\n" % (n, n) for n in range(8)]


def processes(words: str) -> bool:
    """Tell whether a process with *words* in its command line runs in the host."""
    script = "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || tr '\\0' ' ' < $p/cmdline; done"
    return words.encode() in sh(script).stdout.replace(script.encode(), b"")


@pytest.mark.parametrize(
    "script",
    [
        "sleep 3131",
        "trap '' HUP TERM; sleep 3131; sleep 3131",
        "setsid sh -c : ; sleep 3131 & wait",
    ],
    ids=["plain", "stubborn", "background"],
)
def test_a_killed_client_ends_its_command(kept: None, script: str) -> None:
    with subprocess.Popen([*EXEC, "sh", "-c", script], stdin=subprocess.PIPE) as client:
        eventually(lambda: processes("sleep 3131"))
        client.kill()
    eventually(lambda: not processes("sleep 3131"))


def test_signals_go_to_the_command(kept: None) -> None:
    script = "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen([*EXEC, "sh", "-c", script], stdout=subprocess.PIPE) as client:
        assert client.stdout
        assert client.stdout.readline() == b"ready\n"
        client.terminate()
        assert client.stdout.read() == b"term\n"
        assert client.wait(60) == 9


def on_terminal(command: list[str], keys: bytes, until: bytes) -> tuple[bytes, int, bool]:
    """Run *command* in a terminal of 33 by 77, type *keys* once it has said "ready".

    Returns what the terminal showed, the exit status, and whether its modes are as before.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    before = termios.tcgetattr(follower)
    with subprocess.Popen(
        [*EXEC, *command], stdin=follower, stdout=follower, stderr=follower, process_group=0
    ) as client:
        shown = b""
        while b"ready" not in shown:
            shown += os.read(leader, 1000)
        os.write(leader, keys)
        while until not in shown:
            shown += os.read(leader, 1000)
        status = client.wait(60)
    same = termios.tcgetattr(follower) == before
    os.close(follower)
    with contextlib.suppress(OSError):
        while data := os.read(leader, 1000):
            shown += data
    os.close(leader)
    return shown, status, same


def test_a_terminal_has_our_size_and_is_restored(kept: None) -> None:
    script = "stty size; echo ready; read line; echo got $line; tty; exit 4"
    shown, status, same = on_terminal(["sh", "-c", script], b"typed\r", b"/dev/pts")
    assert b"33 77" in shown
    assert b"got typed" in shown
    assert status == 4
    assert same


def test_ctrl_c_reaches_the_command_not_the_client(kept: None) -> None:
    script = "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.1; done"
    shown, status, same = on_terminal(["sh", "-c", script], b"\x03", b"caught")
    assert b"caught" in shown
    assert status == 6
    assert same


class Screen:
    """A terminal with *command* on it."""

    def __init__(self, command: list[str]) -> None:
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.client = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        self.shown = b""

    def expect(self, text: bytes, seconds: float = 120.0) -> bytes:
        """Wait for *text*; return what came before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = max(deadline - time.monotonic(), 0)
            assert select.select([self.leader], [], [], left)[0], self.shown
            self.shown += os.read(self.leader, 4096)
        before, _, self.shown = self.shown.partition(text)
        return before

    def rest(self) -> bytes:
        """Return what comes until the command ends."""
        with contextlib.suppress(OSError):
            while data := os.read(self.leader, 4096):
                self.shown += data
        self.client.wait(60)
        os.close(self.leader)
        return self.shown


def test_a_run_on_a_terminal_is_not_silent_while_it_is_waited_for(kept: None) -> None:
    screen = Screen(
        [
            *(*PYVMM, "run", "--host", f"lab:{PROFILE}", "--cmdline", "console=ttyAMA0 quiet"),
            *("--initrd", str(stock_guest.initramfs()), str(stock_guest.kernel())),
        ]
    )
    for key in (b"r", b"x"):
        screen.expect(b"pyvmm: waiting for ")
        waited = screen.expect(b"pyvmm guest: Linux")
        assert b"\r\x1b[K" in waited, "the line is gone"
        screen.expect(b":~# ")
        os.write(screen.leader, b"\x01" + key)
    # The guest's shell may ask for the cursor's place after its prompt.
    said = screen.rest().removesuffix(b"\x1b[6n")
    assert said.endswith(b"\r\n"), "the shell's prompt gets a line of its own"
    assert screen.client.returncode == 130


def test_status_lists_the_host(kept: None) -> None:
    (host,) = json.loads(lab("status", "--json"))
    assert host["id"] == PROFILE
    assert host["up"]
    assert host["kept"]
    assert b"qemu-system-aarch64" in Path(f"/proc/{host['pid']}/cmdline").read_bytes()


def test_up_when_it_is_up_changes_nothing(kept: None) -> None:
    before = lab("status", "--json")
    assert lab("up", PROFILE) == f"{PROFILE} is up already\n"
    assert lab("status", "--json") == before


def test_a_client_without_the_token_is_not_served(kept: None) -> None:
    host = Host.find(PROFILE)
    assert host
    forger = Host(host.directory, host.record)
    forger.agent.token = b"0" * 64
    connection = forger.agent.connect()
    connection.send(protocol.RUN, b"{}")
    with pytest.raises(EOFError):
        connection.receive()
    connection.close()


def test_nothing_is_left_after_down(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    lab("up", PROFILE)
    host = Host.find(PROFILE)
    assert host
    assert host.record.qemu
    lab("down", PROFILE)
    assert not host.record.qemu.alive
    assert list(state.hosts_directory().iterdir()) == []
    assert lab("status") == "no lab host runs\n"
