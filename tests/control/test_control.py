"""The requests of a machine, by the client, on a machine without vCPUs."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from tests.recorded import Recorded
from vmm.config import MachineConfig
from vmm.config.control import ControlConfig, parse_control
from vmm.control.client import Client
from vmm.control.control import Control, Status
from vmm.control.feeds import HeardEvents
from vmm.control.names import names, socket_of
from vmm.control.routes import Call
from vmm.errors import HostError, UserError
from vmm.loop import Loop
from vmm.machine.machine import Ending, Machine


@dataclass
class Still:
    """A machine that counts who holds it."""

    holders: int = 0
    ended: list[Ending] = field(default_factory=list)
    power: None = None
    dumping: threading.Event = field(default_factory=threading.Event)
    strayed: bool = False

    def take_back(self) -> None:
        self.strayed = False

    @property
    def paused(self) -> bool:
        return self.holders > 0

    def pause(self) -> None:
        self.holders += 1

    def resume(self) -> None:
        self.holders -= 1

    def dump_memory(self, fd: int) -> Generator[None, None, None]:
        """Dump until `dumping` is cleared."""
        self.pause()
        self.dumping.set()
        try:
            while self.dumping.is_set():
                yield
            os.write(fd, b"RAM")
        finally:
            self.dumping.clear()
            self.resume()

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)


@dataclass
class Running:
    """A machine's control, whose loop runs."""

    machine: Still
    events: HeardEvents
    control: Control


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def running(run_directory: Path) -> Iterator[Running]:
    config = MachineConfig(image=Path("/an/image"), control=ControlConfig("web"))
    machine, events = Still(), HeardEvents(Recorded())
    with Loop() as loop:
        control = Control(config, cast("Machine", machine), loop, events)
        thread = threading.Thread(target=loop.run)
        thread.start()
        control.start()
        yield Running(machine, events, control)
        closed = threading.Event()

        def close() -> None:
            control.close()
            closed.set()

        loop.call_soon_threadsafe(close)
        assert closed.wait(20)
        loop.stop()
        thread.join()
    assert not socket_of("web").exists()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client.of("web") as client:
        yield client


def test_a_machine_says_what_it_is(running: Running, client: Client) -> None:
    found = client.ask("GET", "/")
    assert (found["name"], found["pid"], found["state"]) == ("web", os.getpid(), "running")
    assert (found["image"], found["vcpus"]) == ("/an/image", [])
    status: Status = running.control._status(Call({}, ()))
    assert status.uptime >= found["uptime"] >= 0
    assert names() == ["web"]


def test_its_socket_is_its_users_alone(running: Running, run_directory: Path) -> None:
    path = run_directory / "pyvmm" / "machines" / "web.socket"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_pause_holds_once_and_a_resume_lets_go(running: Running, client: Client) -> None:
    for _ in range(2):
        assert client.ask("POST", "/pause")["state"] == "paused"
    assert running.machine.holders == 1
    assert client.ask("POST", "/resume")["state"] == "running"
    with pytest.raises(UserError, match="web: the machine is not paused; see its status"):
        client.ask("POST", "/resume")


def test_a_resume_does_not_let_go_of_what_a_debugger_holds(
    running: Running, client: Client
) -> None:
    running.machine.pause()
    with pytest.raises(UserError, match="somebody else holds it"):
        client.ask("POST", "/resume")
    client.ask("POST", "/pause")
    assert client.ask("POST", "/resume")["state"] == "paused"
    assert running.machine.holders == 1


def test_a_dump_leaves_the_other_clients_their_answers(
    running: Running, client: Client, tmp_path: Path
) -> None:
    def dump() -> None:
        with Client.of("web") as another, (tmp_path / "dump").open("wb") as file:
            another.ask("POST", "/memory-dump", fds=[file.fileno()])

    dumper = threading.Thread(target=dump)
    dumper.start()
    assert running.machine.dumping.wait(20)
    assert client.ask("GET", "/")["state"] == "paused"
    client.ask("POST", "/pause")
    assert client.ask("POST", "/resume")["state"] == "paused", "the dump holds it"
    running.machine.dumping.clear()
    dumper.join(20)
    assert (tmp_path / "dump").read_bytes() == b"RAM"
    assert client.ask("GET", "/")["state"] == "running"


def test_the_end_of_the_machine_breaks_off_a_dump(run_directory: Path, tmp_path: Path) -> None:
    config = MachineConfig(image=Path("/an/image"), control=ControlConfig("web"))
    machine = Still()
    with Loop() as loop:
        control = Control(config, cast("Machine", machine), loop, HeardEvents(Recorded()))
        control.start()

        def dump() -> None:
            with (
                Client.of("web") as another,
                (tmp_path / "dump").open("wb") as file,
                pytest.raises(HostError),
            ):
                another.ask("POST", "/memory-dump", fds=[file.fileno()])

        dumper = threading.Thread(target=dump)
        dumper.start()
        loop.run(machine.dumping.is_set)
        control.close()
        dumper.join(20)
        assert not dumper.is_alive()
    assert machine.holders == 0
    assert not machine.dumping.is_set()
    assert (tmp_path / "dump").read_bytes() == b""


def test_a_reset_and_a_stop_end_the_power_cycle(running: Running, client: Client) -> None:
    client.ask("POST", "/reset")
    client.ask("POST", "/stop", {"how": "forced"})
    assert running.machine.ended == [Ending.RESET, Ending.QUIT]
    with pytest.raises(UserError, match="there is no 'softly'; use forced, power-button"):
        client.ask("POST", "/stop", {"how": "softly"})


def test_the_client_hears_events_and_the_end(running: Running) -> None:
    with Client.of("web") as client:
        feed = client.feed("/events")
        threading.Timer(0.2, lambda: running.events.emit("one")).start()
        assert json.loads(next(feed))["event"] == "one"


def test_a_machine_that_is_not_there_is_an_error_in_one_line(running: Running) -> None:
    with pytest.raises(UserError, match="other: no such machine runs; pyvmm ps lists them"):
        Client.of("other")
    with pytest.raises(UserError, match="is no machine's name"):
        Client.of("../web")


def test_two_machines_cannot_have_one_name(running: Running) -> None:
    config = MachineConfig(image=Path("/an/image"), control=ControlConfig("web"))
    with Loop() as loop, pytest.raises(UserError, match=r"--name web: .*in use"):
        Control(config, cast("Machine", running.machine), loop, running.events)
    with Client.of("web") as client:
        assert client.ask("GET", "/")["name"] == "web"


def test_the_client_hears_that_the_machine_hung_up(run_directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_of("dead")))
        listening.listen()
        with Client.of("dead") as client:
            peer, _ = listening.accept()
            peer.close()
            with pytest.raises(HostError, match="dead"):
                client.ask("GET", "/")


@pytest.mark.parametrize("name", ["", ".", "a/b", "-a", "a" * 41, "ä", "a\n"])
def test_a_name_is_a_file_name_and_no_option(name: str) -> None:
    with pytest.raises(UserError, match="no machine's name"):
        parse_control(name, None, with_shell=False)


def test_without_a_socket_there_is_no_name() -> None:
    assert parse_control(None, "off", with_shell=False) is None
    with pytest.raises(UserError, match="--control off: --name"):
        parse_control("web", "off", with_shell=False)
    with pytest.raises(UserError, match="--control: no socket"):
        parse_control(None, "", with_shell=False)
    found = parse_control("a.b-c_1", "p", with_shell=True)
    assert found is not None
    assert (found.name, found.path, found.shell) == ("a.b-c_1", Path("p"), True)
