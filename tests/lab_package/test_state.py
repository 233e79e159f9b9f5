"""Run-time records: who started a host, and whom it is safe to kill."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.lab.host import state
from vmm.lab.host.state import Process, State


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvmm"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def of(process: subprocess.Popen[bytes]) -> Process:
    found = Process.of(process.pid)
    assert found
    return found


def stranger(process: subprocess.Popen[bytes]) -> Process:
    """Return a record whose process id now belongs to *process*, which started later."""
    return replace(of(process), started=of(process).started - 1)


def dead() -> Process:
    process = subprocess.Popen(["true"])
    found = Process.of(process.pid) or Process(process.pid, 0)
    process.wait()
    return found


def record(name: str, **fields: object) -> Path:
    directory = state.hosts_directory() / name
    directory.mkdir()
    owner = fields.pop("owner", state.myself())
    state.save(directory, State("fwb", owner, **fields))  # type: ignore[arg-type]
    return directory


def test_a_process_is_alive_until_it_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    process = of(sleeper)
    assert process.alive
    sleeper.kill()
    sleeper.wait()
    assert not process.alive


def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    process = of(sleeper)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive


def test_kill_ends_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    of(sleeper).kill()
    assert sleeper.wait() == -15


def test_kill_spares_a_stranger_with_the_same_id(sleeper: subprocess.Popen[bytes]) -> None:
    stranger(sleeper).kill()
    time.sleep(0.05)
    assert sleeper.poll() is None


def test_kill_insists() -> None:
    with subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        of(process).kill(patience=0.1)
        assert process.wait() == -9


def test_a_record_survives_saving_and_loading() -> None:
    directory = record("fwb", keep=True, qemu=state.myself(), port=1234, boot_seconds=6.5)
    loaded = state.load(directory)
    assert loaded
    assert loaded.qemu == state.myself()
    assert loaded.port == 1234


def test_records_are_private() -> None:
    directory = record("fwb", keep=True)
    assert (directory / "state.json").stat().st_mode & 0o777 == 0o600
    assert directory.parent.parent.stat().st_mode & 0o777 == 0o700


def test_an_emulator_whose_starter_died_before_recording_it_is_told_to_quit() -> None:
    directory = record("fwb", owner=dead(), keep=True)
    heard = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "qmp"))
        listener.listen()

        def emulate() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(4096))

        emulator = threading.Thread(target=emulate)
        emulator.start()
        assert list(state.hosts()) == []
        emulator.join()
    assert b'"quit"' in heard[0]
    assert not directory.exists()


def test_a_kept_host_is_listed_though_its_starter_has_ended() -> None:
    record("fwb", owner=dead(), keep=True, qemu=state.myself(), port=1)
    assert [directory.name for directory, _ in state.hosts()] == ["fwb"]


def test_a_host_that_is_starting_is_listed_and_not_up() -> None:
    record("fwb", keep=True)
    ((_, found),) = state.hosts()
    assert not found.up


def test_a_host_whose_emulator_has_died_is_swept() -> None:
    directory = record("fwb", owner=dead(), keep=True, qemu=dead(), port=1)
    assert list(state.hosts()) == []
    assert not directory.exists()


def test_a_host_for_one_command_is_ended_with_its_starter(
    sleeper: subprocess.Popen[bytes],
) -> None:
    directory = record("fwb.1.2", owner=dead(), keep=False, qemu=of(sleeper), port=1)
    assert list(state.hosts()) == []
    assert not directory.exists()
    assert sleeper.wait() == -15


def test_a_host_half_started_by_a_dead_process_is_swept() -> None:
    directory = record("fwb", owner=dead(), keep=True)
    assert list(state.hosts()) == []
    assert not directory.exists()


def test_sweeping_spares_a_stranger_with_a_stale_id(sleeper: subprocess.Popen[bytes]) -> None:
    directory = record("fwb", owner=dead(), keep=True, qemu=stranger(sleeper), port=1)
    assert list(state.hosts()) == []
    assert not directory.exists()
    assert sleeper.poll() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": 1}', '{"owner": {"pid": 1}}'])
def test_a_broken_record_is_no_record(text: str) -> None:
    directory = state.hosts_directory() / "fwb"
    directory.mkdir()
    (directory / "state.json").write_text(text)
    assert state.load(directory) is None
    assert list(state.hosts()) == []
    assert directory.exists(), "it may be about to be written"
    os.utime(directory, (0, 0))
    assert list(state.hosts()) == []
    assert not directory.exists()
