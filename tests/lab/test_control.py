"""Every order to a running machine, from outside, and that the sealed machine can obey it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pyte
import pytest

from tests.lab.guest.flat_guest import ECHO, assemble
from tests.lab.program import PATIENCE, PYVMM
from vmm.lab.guest.uki import guest_image

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("kept"),
]


def order(verb: str, *words: str | Path, status: int = 0) -> str:
    command = [PYVMM, verb, "--host", "lab:fwb", *map(str, words)]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == status, done.stderr
    return (done.stdout + done.stderr).decode()


def running() -> list[dict[str, Any]]:
    done = subprocess.run([PYVMM, "ps", "--json"], stdout=-1, check=True, timeout=PATIENCE)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def memory() -> str:
    """RAM of `machine`."""
    return "64M"


@pytest.fixture
def machine(tmp_path: Path, memory: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a machine called web, sealed, whose guest answers what is typed, with a disk."""
    guest, disk = assemble(tmp_path, ECHO), tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    command = [PYVMM, "run", "--host", "lab:fwb", "--name", "web", str(guest), "--memory", memory]
    command += ["--disk", str(disk), "--events", str(tmp_path / "events")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-2) as program:
        wait(lambda: program.poll() is not None or bool(running()))
        assert program.poll() is None, program.stdout and program.stdout.read()
        yield program
        program.kill()


def test_a_machine_is_paused_reset_dumped_and_stopped(
    machine: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (found,) = running()
    assert (found["name"], found["host"], found["state"]) == ("web", "lab:fwb", "running")
    order("pause", "web")
    assert running()[0]["state"] == "paused"
    order("resume", "web")
    assert "not paused" in order("resume", "web", status=2)
    assert running()[0]["state"] == "running"
    order("reset", "web")
    dump = tmp_path / "dump"
    order("dump", "web", dump)
    assert dump.stat().st_size == 64 << 20
    assert dump.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "guest.bin").read_bytes()[:16] in dump.read_bytes()
    assert "--snapshot" in order("snapshot", "web", status=2)
    order("stop", "web")
    assert machine.wait(PATIENCE) == 130
    assert running() == []
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    names = [each["event"] for each in events]
    assert "isolated" in names
    assert "sandbox-denied" not in names
    assert [each["how"] for each in events if each["event"] == "ended"] == ["reset", "quit"]


@pytest.mark.parametrize("memory", ["1G"])
def test_a_dump_of_much_memory_leaves_others_their_answers_and_ends_by_a_reset(
    machine: subprocess.Popen[bytes], tmp_path: Path, memory: str
) -> None:
    dump = [PYVMM, "dump", "--host", "lab:fwb", "web", str(tmp_path / "dump")]
    with subprocess.Popen(dump, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as dumping:
        wait(lambda: dumping.poll() is not None or running()[0]["state"] == "paused")
        assert dumping.poll() is None, "it answers while the dump is written"
        order("reset", "web")
        _, said = dumping.communicate(timeout=PATIENCE)
    assert dumping.returncode == 2
    assert b"reset or has ended meanwhile" in said
    assert running()[0]["state"] == "running"
    order("stop", "web")
    assert machine.wait(PATIENCE) == 130


class Screen:
    """A command on a terminal, and what that shows. A context manager."""

    def __init__(self, *words: str) -> None:
        self.shown = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.shown)
        self._fd, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        self._program = subprocess.Popen(
            [PYVMM, *words], stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def look(self, text: str) -> str:
        """Wait until the terminal shows *text*; return all that it shows."""
        deadline = time.monotonic() + PATIENCE
        while text not in "\n".join(self.shown.display):
            assert time.monotonic() < deadline, self.shown.display
            if select.select([self._fd], [], [], 1)[0]:
                self._stream.feed(os.read(self._fd, 4096))
        return "\n".join(self.shown.display)

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._program.wait(PATIENCE)


def test_a_console_is_attached_and_left_while_top_looks(
    machine: subprocess.Popen[bytes],
) -> None:
    with Screen("console", "--host", "lab:fwb", "web") as one:
        one.look("attached; C-a d leaves")
        one.type(b"hello")
        one.look("hello")
        with Screen("top", "--host", "lab:fwb", "web") as top:
            top.look("exits/s to pyvmm")
            deadline = time.monotonic() + PATIENCE
            while True:
                one.type(b"more")
                shown = top.look("DEVICE")
                if "MMIO" in shown:
                    break
                assert time.monotonic() < deadline, shown
            assert "web: running" in shown
            top.type(b"q")
        one.type(b"\x01d")
        one.look("left web")
    assert running()[0]["state"] == "running"
    assert machine.poll() is None


def test_an_idle_guest_is_looked_at(tmp_path: Path) -> None:
    """KVM_GET_STATS_FD of a vCPU waits for the end of its KVM_RUN, and WFI does not end it."""
    guest = assemble(tmp_path, "again: wfi\nb again\n")
    command = [PYVMM, "run", "--host", "lab:fwb", "--name", "idle", str(guest)]
    with subprocess.Popen(command, stdin=-1, stdout=-3, stderr=-3) as program:
        wait(lambda: bool(running()))
        said = order("top", "idle")
        assert "idle: running" in said
        assert "kick" not in order("top", "idle"), "only the first look pauses it"
        order("stop", "idle")
        assert program.wait(PATIENCE) == 130


def test_events_come_until_the_end_and_a_second_machine_needs_another_name(
    machine: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    command = [PYVMM, "events", "--host", "lab:fwb", "web"]
    with subprocess.Popen(command, stdin=-3, stdout=-1) as reader:
        wait(lambda: running()[0]["state"] == "running")
        guest = tmp_path / "guest.bin"
        assert "--name web" in order("run", "--name", "web", guest, status=2)
        order("reset", "web")
        order("stop", "web")
        assert reader.stdout is not None
        events = [json.loads(line)["event"] for line in reader.stdout]
        assert events[-1] == "ended"
    assert machine.wait(PATIENCE) == 130
    assert "no such machine" in order("stop", "web", status=2)


def test_a_dry_run_makes_the_machine_and_runs_nothing(tmp_path: Path) -> None:
    tree = tmp_path / "dtb"
    events = tmp_path / "events"
    words: list[str | Path] = [
        "--rng",
        "--dry-run",
        "--dump-dtb",
        tree,
        "--cpus",
        "2",
        "--events",
        events,
    ]
    said = order("run", guest_image(), *words)
    assert "2 vCPUs, 512 MiB of RAM, GICv3" in said
    assert "virtio devices: rng" in said
    assert "nothing has run" in said
    source = subprocess.run(["dtc", "-I", "dtb", tree], capture_output=True, check=True).stdout
    assert b"cpu@1" in source
    assert b'compatible = "virtio,mmio"' in source
    assert "parts are opened" in events.read_text()
    assert "power-on" not in events.read_text()
    assert running() == []
