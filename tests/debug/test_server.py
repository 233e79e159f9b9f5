"""Clients of the gdb server: one at a time, and none of them hurts the machine."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from tests.recorded import Recorded
from vmm.config.gdb import GdbConfig
from vmm.debug.packet import frame
from vmm.debug.server import Server
from vmm.errors import UserError
from vmm.loop import Loop
from vmm.machine.machine import Debugger, Ending, Machine, Watcher
from vmm.memory import GuestMemory

PATIENCE = 5.0


@dataclass
class Space:
    """No memory."""

    memory: GuestMemory = field(default_factory=lambda: GuestMemory([]))


@dataclass
class Off:
    """A machine without vCPUs that counts who holds it."""

    space: Space = field(default_factory=Space)
    held: int = 0
    ended: list[Ending] = field(default_factory=list)
    debugger: Debugger | None = None
    watchers: list[Watcher] = field(default_factory=list)

    def pause(self) -> None:
        self.held += 1

    def resume(self) -> None:
        self.held -= 1

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)

    def ledger(self) -> None:
        raise AssertionError


@dataclass
class Rig:
    """A server on a socket of its own."""

    loop: Loop
    machine: Off
    events: Recorded
    path: Path
    server: Server

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.settimeout(0)
        return client

    def run(self, until: Callable[[], bool]) -> None:
        timer = self.loop.call_later(PATIENCE, self.loop.stop)
        self.loop.run(until)
        timer.cancel()
        assert until()

    def ask(self, client: socket.socket, data: bytes, end: bytes) -> bytes:
        """Send *data*, and return what comes until it has *end*."""
        client.sendall(data)
        got = bytearray()

        def answered() -> bool:
            with suppress(BlockingIOError):
                got.extend(client.recv(1 << 16))
            return end in got

        self.run(answered)
        return bytes(got)

    def told(self, event: str) -> bool:
        return event in self.events.names()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    machine, events, path = Off(), Recorded(), tmp_path / "gdb"
    with Loop() as loop:
        server = Server(GdbConfig(path=path), cast("Machine", machine), loop, events)
        with server:
            yield Rig(loop, machine, events, path, server)
    assert not path.exists()


def test_the_socket_is_its_owners(rig: Rig) -> None:
    assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600


def test_a_packet_stops_the_machine_and_a_connection_does_not(rig: Rig) -> None:
    with rig.connect() as client:
        rig.run(lambda: rig.told("debugger-connected"))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        rig.loop.call_later(0.05, rig.loop.stop)
        rig.loop.run()
        assert rig.machine.held == 0
        assert rig.ask(client, frame(b"?"), b"#").startswith(b"+$T05thread:1;#")
        assert rig.machine.held == 1


@pytest.mark.parametrize("leave", [b"", frame(b"D")])
def test_the_machine_goes_on_when_the_client_leaves(rig: Rig, leave: bytes) -> None:
    with rig.connect() as client:
        rig.ask(client, frame(b"?"), b"#")
        client.sendall(leave)
        if not leave:
            client.close()
        rig.run(lambda: rig.told("debugger-left"))
    assert rig.machine.held == 0
    with rig.connect() as client:  # the next one is welcome
        assert b"QC1" in rig.ask(client, frame(b"qC"), b"#")


def test_a_second_client_is_refused(rig: Rig) -> None:
    with rig.connect() as first, rig.connect() as second:
        rig.run(lambda: rig.told("debugger-refused"))
        assert second.recv(1) == b""
        assert b"QC1" in rig.ask(first, frame(b"qC"), b"#")


def test_kill_ends_the_machine(rig: Rig) -> None:
    with rig.connect() as client:
        client.sendall(frame(b"k"))
        rig.run(lambda: rig.machine.ended == [Ending.QUIT])


def test_a_broken_packet_is_asked_for_again(rig: Rig) -> None:
    with rig.connect() as client:
        assert rig.ask(client, b"$qC#00", b"-") == b"-"
        answer = rig.ask(client, frame(b"qC"), b"#")
        assert rig.ask(client, b"-", b"#").startswith(answer[1:5])


def test_without_acknowledgements_there_are_none(rig: Rig) -> None:
    with rig.connect() as client:
        rig.ask(client, frame(b"QStartNoAckMode"), b"#")
        assert rig.ask(client, frame(b"qC"), b"#").startswith(b"$QC1#")


@pytest.mark.parametrize(
    "data",
    [
        b"g", b"p5", b"P5=00", b"G00", b"m0,10", b"m0,ffffffffffff", b"mzz", b"M0,1:00", b"X0,1:a",
        b"Z0,0,4", b"Z9,0,4", b"z0", b"Hg5", b"Hgzz", b"T9", b"vCont;", b"vCont;s:9", b"vCont;x",
        b"c", b"s", b"c4000", b"qRcmd,zz", b"qRcmd,7", b"qXfer:features:read:target.xml:0,1000",
        b"qXfer:threads:read::z,1", b"qThreadExtraInfo,77", b"\xff\xfe", b"", b"!", b"Q\x80",
    ],
)  # fmt: skip
def test_every_packet_has_an_answer_and_none_ends_the_server(rig: Rig, data: bytes) -> None:
    """The machine is off here, so most of these cannot be met."""
    with rig.connect() as client:
        rig.ask(client, frame(data), b"+")
        assert b"QC1" in rig.ask(client, frame(b"qC"), b"QC1")


def test_a_client_that_does_not_read_is_dropped(rig: Rig) -> None:
    with rig.connect() as client:
        question = frame(b"qSupported") * 64
        sent = 0

        def flooded() -> bool:
            nonlocal sent
            with suppress(BlockingIOError, BrokenPipeError):
                sent += client.send(question)
            return rig.told("debugger-left")

        rig.run(flooded)
    assert rig.machine.held == 0
    assert sent


def test_rubbish_does_not_fill_memory(rig: Rig) -> None:
    with rig.connect() as client:
        client.settimeout(PATIENCE)
        for _ in range(8):
            client.sendall(b"$" + os.urandom(1 << 14).replace(b"#", b"$"))
            rig.loop.call_later(0.01, rig.loop.stop)
            rig.loop.run()
        client.settimeout(0)
        assert b"QC1" in rig.ask(client, b"#00" + frame(b"qC"), b"QC1")


def test_the_client_hears_that_the_machine_has_ended(rig: Rig) -> None:
    with rig.connect() as client:
        rig.ask(client, frame(b"?"), b"#")
        rig.server.close()
        client.settimeout(PATIENCE)
        assert b"$W00#" in client.recv(100)


def test_a_taken_port_is_an_error(rig: Rig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--gdb {port}: another program has the port"):
            Server(GdbConfig(port=port), cast("Machine", rig.machine), rig.loop, rig.events)


def test_a_port_is_the_loopbacks(rig: Rig) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        Server(GdbConfig(port=port), cast("Machine", rig.machine), rig.loop, rig.events),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as client,
    ):
        assert client.getpeername()[0] == "127.0.0.1"
        client.settimeout(0)
        assert b"QC1" in rig.ask(client, frame(b"qC"), b"#")


def test_with_wait_the_machine_is_held_before_it_runs(rig: Rig, tmp_path: Path) -> None:
    config = GdbConfig(path=tmp_path / "other", wait=True)
    with Server(config, cast("Machine", rig.machine), rig.loop, rig.events):
        assert rig.machine.held == 1
