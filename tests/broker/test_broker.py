"""The broker: what it does, what it refuses, and what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.daemons import alive, eventually
from vmm.broker import Broker, server
from vmm.errors import HostError, UserError

PATIENCE = 30.0


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


@pytest.fixture
def null() -> Iterator[list[int]]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield [fd, fd, fd]
    os.close(fd)


def test_a_daemon_is_started_signalled_and_reaped(broker: Broker, null: list[int]) -> None:
    command = broker.allow(["/bin/sleep", "1000"])
    broker.freeze()
    pid, pidfd = broker.start(command, null)
    with pytest.raises(BlockingIOError):
        broker.reap(pid)
    broker.signal(pid, signal.SIGTERM)
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    assert os.waitstatus_to_exitcode(broker.reap(pid)) == -signal.SIGTERM
    with pytest.raises(ChildProcessError):
        broker.reap(pid)
    broker.signal(pid, signal.SIGTERM)  # whose number it is now, it is not told


def test_once_frozen_it_takes_nothing_new(broker: Broker, tmp_path: Path) -> None:
    broker.freeze()
    broker.freeze()
    with pytest.raises(PermissionError, match="nothing new"):
        broker.allow(["/bin/sh"])
    victim = tmp_path / "file"
    victim.write_text("kept")
    with pytest.raises(PermissionError, match="nothing new"):
        broker.owe("socket", str(victim), victim.stat().st_ino)
    with pytest.raises(PermissionError, match="nothing new"):
        broker.offer("stage2")
    broker.close()
    assert victim.read_text() == "kept"


def test_what_a_daemon_has_started_ends_with_it(
    broker: Broker, null: list[int], tmp_path: Path
) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/child"
    pid, pidfd = broker.start(broker.allow(["/bin/sh", "-c", script]), null)
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    child = int((tmp_path / "child").read_text())
    assert alive(child)
    assert broker.reap(pid) == 0
    assert not alive(child)


def test_it_signals_no_process_but_its_daemons(broker: Broker) -> None:
    with subprocess.Popen(["/bin/sleep", "1000"]) as other:
        broker.signal(other.pid, signal.SIGKILL)
        for kill in (False, True):
            with pytest.raises(ChildProcessError, match="no such daemon"):
                broker._ask("reap", pid=other.pid, kill=kill)
        assert other.poll() is None
        other.kill()


def test_so_many_daemons_and_no_more(broker: Broker, null: list[int]) -> None:
    command = broker.allow(["/bin/sleep", "1000"])
    broker.freeze()
    started = [broker.start(command, null) for _ in range(server.MOST_DAEMONS)]
    for _, pidfd in started:
        os.close(pidfd)
    with pytest.raises(BlockingIOError, match="daemons run already"):
        broker.start(command, null)


def test_its_descriptors_are_its_own(broker: Broker) -> None:
    broker.freeze()
    shown = {path.name for path in Path(f"/proc/{broker.pid}/fd").iterdir()}
    assert shown == {"0", "1", "2", "3"}


def test_signals_to_the_process_group_do_not_end_it(broker: Broker) -> None:
    """A terminal's, and SIGUSR2, which asks the machine for a snapshot."""
    for number in (*server.DEAF, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(broker.pid, number)
    broker.freeze()
    assert alive(broker.pid)


def test_a_socket_is_removed_unless_another_has_its_name(broker: Broker, tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.touch()
    others.touch()
    debts = [broker.owe("socket", str(path), path.stat().st_ino) for path in (mine, others)]
    kept = others.rename(tmp_path / "kept")
    others.write_text("another's")
    broker.freeze()
    for debt in debts:
        broker.pay(debt)
        broker.pay(debt)
    assert not mine.exists()
    assert (others.read_text(), kept.exists()) == ("another's", True)


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_appears_when_it_is_finished(
    broker: Broker, tmp_path: Path, *, finished: bool
) -> None:
    temporary, path = tmp_path / ".x", tmp_path / "x"
    temporary.write_text("all of it")
    debt = broker.owe("file", str(temporary), str(path))
    broker.freeze()
    broker.pay(debt, asked=finished)
    assert path.exists() is finished
    assert not temporary.exists()


KILLED = """\
import os, sys, time
from vmm.broker import Broker
broker = Broker()
command = broker.allow(["/bin/sh", "-c", "trap 'echo said > " + sys.argv[1] + "/end; exit' TERM; "
                        "echo up > " + sys.argv[1] + "/up; while :; do sleep 0.01; done"])
open(sys.argv[1] + "/left", "w").close()
broker.owe("socket", sys.argv[1] + "/left", os.stat(sys.argv[1] + "/left").st_ino)
broker.freeze()
null = os.open("/dev/null", os.O_RDWR)
pid, _ = broker.start(command, [null] * 3)
print(broker.pid, pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("who", ["machine", "broker"])
def test_what_a_killed_process_leaves_is_cleared_away(tmp_path: Path, who: str) -> None:
    """The daemon gets time to write what it has."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as machine:
        assert machine.stdout
        broker, daemon = map(int, machine.stdout.readline().split())
        eventually((tmp_path / "up").exists)
        os.kill(broker if who == "broker" else machine.pid, signal.SIGKILL)
        eventually(lambda: not alive(daemon))
        assert (tmp_path / "end").read_text() == "said\n"
        machine.kill()
    eventually(lambda: not alive(broker))
    assert (tmp_path / "left").exists() is (who == "broker")


def test_a_broker_that_was_killed_is_one_clear_error(broker: Broker) -> None:
    os.kill(broker.pid, signal.SIGKILL)
    assert select.select([broker], [], [], PATIENCE)[0]
    with pytest.raises(HostError, match="the broker"):
        broker.freeze()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
OPS = ["allow", "freeze", "listener", "start", "signal", "reap", "owe", "pay", "offer", "do", "run"]
KEYS = [
    "argv",
    "command",
    "pid",
    "number",
    "kill",
    "kind",
    "arguments",
    "debt",
    "asked",
    "errand",
    "step",
]
REQUESTS = st.builds(
    lambda op, fields: json.dumps({"op": op, **fields}).encode(),
    st.sampled_from(OPS),
    st.dictionaries(st.sampled_from(KEYS), VALUES),
)


@given(st.lists(REQUESTS | VALUES.map(lambda each: json.dumps(each).encode()) | st.binary()))
@settings(max_examples=40, deadline=None)
def test_whatever_a_machine_says_nothing_new_is_started(messages: list[bytes]) -> None:
    """A frozen broker of one daemon and one debt is given messages that no machine sends."""
    with Broker() as broker:
        command = broker.allow(["/bin/sleep", "1000"])
        broker.freeze()
        null = os.open(os.devnull, os.O_RDWR)
        pid, pidfd = broker.start(command, [null] * 3)
        for each in (null, pidfd):
            os.close(each)
        broker._socket.settimeout(PATIENCE)
        for message in messages:
            with suppress(BrokenPipeError, ConnectionResetError):
                broker._socket.send(message or b"{")
                _, fds, _, _ = socket.recv_fds(broker._socket, server.LONGEST, server.MOST_FDS)
                for fd in fds:
                    os.close(fd)
            children = Path(f"/proc/{broker.pid}/task/{broker.pid}/children")
            commands = {
                Path(f"/proc/{child}/cmdline").read_bytes()
                for child in (children.read_text().split() if children.exists() else ())
                if alive(int(child))
            }
            assert commands <= {b"/bin/sleep\x001000\x00", b""}
    assert not alive(pid)


def note(path: str, word: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{word} {os.getpid()}\n")


def lend(path: str, how: str) -> str:
    if how == "not at all":
        raise UserError("there is none", "ask for another")
    note(path, "lent")
    return f"{how} by {os.getpid()}"


def take_back(path: str, _how: str, asked: bool) -> None:  # noqa: FBT001
    note(path, "back" if asked else "left")


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_borrowed_is_taken_and_given_back_by_the_broker(
    tmp_path: Path, *, asked: bool
) -> None:
    path = str(tmp_path / "log")
    with Broker({"thing": server.Debt(take_back, lend)}) as broker:
        with pytest.raises(UserError, match="there is none"):
            broker.borrow("thing", path, "not at all")
        debt, got = broker.borrow("thing", path, "gladly")
        assert got == f"gladly by {broker.pid}"
        broker.freeze()
        with pytest.raises(PermissionError, match="nothing new"):
            broker.borrow("thing", path, "again")
        if asked:
            broker.pay(debt)
        pid = broker.pid
    assert Path(path).read_text() == f"lent {pid}\n{'back' if asked else 'left'} {pid}\n"


def test_an_answer_that_was_missed_is_not_the_next_requests(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "recv_fds", fail)
        with pytest.raises(HostError, match="does not answer: Cannot allocate memory"):
            broker.allow(["/bin/true"])
    with pytest.raises(HostError, match="broker"):
        broker.allow(["/bin/false"])
    assert select.select([broker], [], [], 10)[0], "it ends"
