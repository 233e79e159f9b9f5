"""Programs that work for a machine."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from tests.daemons import alive, eventually
from tests.recorded import Recorded
from vmm.errors import HostError
from vmm.events import COMPLAINTS, Bounded, Events
from vmm.virtio.vhost import daemon
from vmm.virtio.vhost.daemon import FIRST_FD, Command, Daemon, find

PATIENCE = 30.0


class Output(Recorded):
    def lines(self) -> list[object]:
        return [fields["line"] for event, fields in self.seen if event == "daemon-said"]


@pytest.fixture
def events() -> Output:
    return Output()


def shell(script: str, events: Events, **more: object) -> Daemon:
    return Daemon(Command(["/bin/sh", "-c", script]), events, **more)  # type: ignore[arg-type]


def test_what_it_says_is_an_event(events: Output) -> None:
    with shell("echo one >&2; echo lost; printf two >&2", events) as program:
        assert program.wait(PATIENCE)
    assert events.lines() == ["one", "two"]


def test_a_program_that_babbles_is_cut_short(events: Output) -> None:
    script = "yes | head -n 10000 >&2; head -c 3000 /dev/zero | tr '\\0' x >&2"
    with shell(script, Bounded(events)) as program:
        assert program.wait(PATIENCE)
    assert len(events.lines()) == COMPLAINTS
    assert len(program._said[-1]) == daemon.LONGEST_LINE


def test_its_end_is_told_once(events: Output) -> None:
    ended = Event()
    with shell("echo no disk >&2; exit 3", events, on_end=ended.set) as program:
        assert ended.wait(PATIENCE)
        assert program.wait(PATIENCE)
        assert program.status == 3
        assert program.last_words() == "sh ended (status 3): no disk"
    assert [event for event, _ in events.seen].count("daemon-ended") == 1


def test_closing_asks_it_to_end(events: Output) -> None:
    told: list[int] = []
    program = shell(
        'trap "echo bye >&2; exit 0" TERM; echo up >&2; while :; do sleep 0.01; done',
        events,
        on_end=lambda: told.append(1),
    )
    eventually(lambda: events.lines() == ["up"])
    program.close()
    program.close()
    assert program.status == 0
    assert events.lines() == ["up", "bye"]
    assert not told


def test_what_does_not_heed_that_is_killed(events: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "GRACE", 0.2)
    program = shell('trap "" TERM; echo up >&2; while :; do sleep 0.01; done', events)
    eventually(lambda: bool(events.lines()))
    program.close()
    assert program.status == -signal.SIGKILL
    assert program.last_words().startswith("sh ended (SIGKILL)")


def test_it_gets_the_descriptors_it_is_given_and_no_others(events: Output) -> None:
    ours, theirs = socket.socketpair()
    other = os.open("/dev/zero", os.O_RDONLY)
    fcntl.fcntl(other, fcntl.F_SETFD, 0)
    script = f"ls /proc/self/fd >&2; echo hello >&{FIRST_FD}"
    with shell(script, events, fds=[theirs.fileno()]) as program, ours, theirs:
        assert program.wait(PATIENCE)
        assert ours.recv(100) == b"hello\n"
    os.close(other)
    # The last one is the directory that ls itself has opened.
    assert events.lines() == ["0", "1", "2", "3", "4"]


def test_it_hears_signals_that_we_ignore(events: Output) -> None:
    """Python ignores SIGPIPE, and an ignored signal stays ignored over exec."""
    with shell("yes | :; grep SigIgn /proc/self/status >&2", events) as program:
        assert program.wait(PATIENCE)
    assert events.lines() == ["SigIgn:\t0000000000000000"]


def test_it_has_no_terminal_of_ours(events: Output) -> None:
    with shell("ps -o sid= -p $$ >&2" if shutil.which("ps") else "echo $$ >&2", events) as program:
        assert program.wait(PATIENCE)
        assert [int(str(line)) for line in events.lines()] == [program.pid]


def test_what_it_started_ends_with_it(events: Output) -> None:
    with shell("sleep 1000 & echo $! >&2", events) as program:
        assert program.wait(PATIENCE)
        (pid,) = (int(str(line)) for line in events.lines())
        assert not alive(pid)
    script = "(trap '' TERM; echo up >&2; while :; do sleep 0.01; done) & echo $! >&2; wait"
    with shell(script, events) as program:
        eventually(lambda: len(events.lines()) == 3)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    (pid,) = (int(str(line)) for line in events.lines()[1:] if line != "up")
    assert not alive(pid)


def test_it_ends_when_we_are_killed() -> None:
    script = """\
import sys, time
from vmm.virtio.vhost.daemon import Command, Daemon
from vmm.events import Events
daemon = Daemon(Command(["/bin/sleep", "1000"]), Events())
print(daemon.pid, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    eventually(lambda: not alive(pid))


def test_no_descriptor_is_left(events: Output) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        shell("sleep 1000", events).close()
        with pytest.raises(HostError):
            Daemon(Command(["/nonexistent/daemon"]), events)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cannot_be_started_is_one_clear_error(events: Output, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot start /nonexistent/daemon: No such file"):
        Daemon(Command(["/nonexistent/daemon"]), events)
    (tmp_path / "daemon").write_text("no program")
    (tmp_path / "daemon").chmod(0o755)
    with pytest.raises(HostError, match="Exec format error"):
        Daemon(Command([str(tmp_path / "daemon")]), events)


def test_the_end_by_a_signal_without_a_name_is_said_too(events: Output) -> None:
    with shell("kill -s 37 $$", events) as program:
        assert program.wait(PATIENCE)
        assert program.last_words() == "sh ended (signal 37)"


def children_that_ended() -> object:
    """Return a zombie's process ID; None if there is no zombie."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def test_what_cannot_be_started_leaves_no_process(events: Output) -> None:
    assert children_that_ended() is None
    with pytest.raises(HostError):
        Daemon(Command(["/nonexistent/daemon"]), events)
    assert children_that_ended() is None


def test_too_many_open_files_are_one_clear_error(
    events: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "pipe2", refuse)
    with pytest.raises(HostError, match="cannot start /bin/sh: Too many open files"):
        shell("sleep 60", events)
    assert children_that_ended() is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_program_is_found_on_path_or_where_debian_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "served"
    wanted = {"package": "serve-utils", "what_for": "--share /x"}
    with pytest.raises(HostError, match=r"--share /x: needs served.*apt-get install serve-utils"):
        find("served", ["/nonexistent", str(tmp_path)], **wanted)
    program.touch(mode=0o755)
    assert find("served", ["/nonexistent", str(tmp_path)], **wanted) == str(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("served", [], **wanted) == str(program)
