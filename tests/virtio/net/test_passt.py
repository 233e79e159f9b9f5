"""User networking by Debian 13's passt, over vhost-user and over a stream."""

from __future__ import annotations

import os
import shlex
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import daemons
from tests.recorded import Recorded
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.net.net_driver import MAC, wait
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from vmm.config.net import parse_net
from vmm.errors import HostError
from vmm.lab.debian import prefix
from vmm.memory import Mapping
from vmm.virtio import status
from vmm.virtio.device import VirtioDevice
from vmm.virtio.net import registers
from vmm.virtio.net.open import PASST_MTU, open_net
from vmm.virtio.net.passt import Passt, StreamBackend, _resolver
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost import service
from vmm.virtio.vhost.user import VhostUser

OLD = """\
case " $* " in *" --vhost-user "*) echo "unrecognized option '--vhost-user'" >&2; exit 1;; esac
"""
"""The start of a script that behaves as a passt of 2023."""

BROADCAST = b"\xff" * 6
ARP, REPLY = 0x0806, 2


@pytest.fixture(params=["vhost-user", "stream"])
def passt(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put passt on PATH, with vhost-user or an old one without; return which."""
    kind = str(request.param)
    command = shlex.join(prefix.prefix("passt", ["passt"]).command("usr/bin/passt"))
    program = tmp_path / "passt"
    program.write_text(f'#!/bin/sh\n{OLD if kind == "stream" else ""}exec {command} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return kind


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(Mapping.memfd)
    yield memory
    memory.close()


def open_user(memory: Memory, events: Recorded, text: str = "user") -> VirtioDevice:
    return open_net("net0", parse_net(text), MemoryMap(memory.guest), events)


class Guest:
    """A driver that sends ARP requests."""

    def __init__(self, memory: Memory, device: VirtioDevice) -> None:
        self.memory, self.device = memory, device
        self.driver = MmioDriver(MmioTransport(device))

    def start(self) -> None:
        self.memory.guest.write(BASE, bytes(0x4_0000))
        self.rx = SplitDriver(self.memory, 64, at=BASE)
        self.tx = SplitDriver(self.memory, 64, at=BASE + 0x1_0000)
        self.driver.negotiate(registers.F_MAC | registers.F_MRG_RXBUF)
        for index, ring in enumerate((self.rx, self.tx)):
            assert self.driver.set_queue(index, 64, ring.areas)
        self.driver.add_status(status.DRIVER_OK)
        self.offered = 0

    def who_has(self, address: str) -> bytes | None:
        """Return the MAC address that passt answers with; None if it does not answer."""
        for _ in range(16):
            place = BUFFERS + 0x1000 + 0x800 * (self.offered % 64)
            if len(self.rx.free) > 1:
                self.rx.add(Buffer(place, 0x800, writable=True))
                self.offered += 1
        arp = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + MAC + bytes(10) + socket.inet_aton(address)
        frame = BROADCAST + MAC + struct.pack(">H", ARP) + arp
        self.memory.guest.write(BUFFERS, bytes(12) + frame.ljust(60, b"\0"))
        self.tx.add(Buffer(BUFFERS, 72))
        for index in (0, 1):
            self.driver.store("QueueNotify", index)
        found: list[bytes] = []

        def answered() -> bool:
            self.rx.used()
            for number in range(self.offered):
                frame = self.memory.guest.read(BUFFERS + 0x1000 + 0x800 * (number % 64), 54)[12:]
                kind, operation = struct.unpack_from(">H6xH", frame, 12)
                if (kind, operation) == (ARP, REPLY):
                    found.append(frame[22:28])
            return bool(found)

        answer = found[0] if wait(answered, 5) else None
        self.memory.guest.write(BUFFERS + 0x1000, bytes(0x800 * 64))
        return answer


def test_passt_answers_each_driver(passt: str, memory: Memory, events: Recorded) -> None:
    device = open_user(memory, events)
    kind = StreamBackend if passt == "stream" else VhostUser
    assert isinstance(device.backend, kind)  # type: ignore[attr-defined]
    assert ("net-up", passt) in [(name, fields.get("passt")) for name, fields in events.seen]
    guest = Guest(memory, device)
    with guest.driver.transport:
        config = [guest.driver.transport.read(0x100 + at, 2) for at in (6, 10)]
        assert config == [1, PASST_MTU]
        for _ in range(3):
            guest.start()
            assert guest.who_has("169.254.77.1")
            guest.driver.store("Status", 0)
    assert not {"virtio-needs-reset", "daemon-killed"} & set(events.names())


def test_when_passt_dies(passt: str, memory: Memory, events: Recorded) -> None:
    """Over vhost-user another passt takes over; with a stream the loss is reported."""
    device = open_user(memory, events)
    guest = Guest(memory, device)
    with guest.driver.transport:
        guest.start()
        assert guest.who_has("169.254.77.1")
        (pid,) = children()
        os.kill(pid, 9)
        [(_, on_readable)] = device.readers()

        def noticed() -> bool:
            on_readable()
            return {"vhost-user-restarted", "virtio-needs-reset"} & set(events.names()) != set()

        assert wait(noticed)
        if passt == "stream":
            (error,) = (f["error"] for name, f in events.seen if name == "virtio-needs-reset")
            assert str(error).startswith("--net user: passt ended (SIGKILL)")
            guest.start()
        assert guest.who_has("169.254.77.1")


def children() -> list[int]:
    """Return the process IDs of passts that run."""
    return [pid for pid, command in daemons().items() if "passt" in command]


def test_passt_goes_with_the_device(passt: str, memory: Memory, events: Recorded) -> None:
    device = open_user(memory, events)
    guest = Guest(memory, device)
    guest.start()
    assert len(children()) == 1
    guest.driver.transport.close()
    assert children() == []


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_ports_that_are_taken_are_an_error_at_once(
    passt: str, memory: Memory, events: Recorded, family: int
) -> None:
    """A passt goes on if it gets the port for one of the two families."""
    both = family == socket.AF_INET6
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as taken:
        port = taken.getsockname()[1]
        text = f"user,forward=tcp:{port}:22"
        with pytest.raises(HostError) as raised:
            open_user(memory, events, text)
    said = (
        f"--net {text}: tcp port {port}: Address already in use; forward another port of the host"
    )
    assert str(raised.value) == said
    assert children() == []


def test_a_guest_cannot_start_passts_without_end(
    passt: str, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STARTS", 2)
    with Passt(parse_net("user"), events) as started:
        for _ in range(2):
            started.connect().close()
        with pytest.raises(HostError, match="--net user: 2 processes were started"):
            started.connect()
    assert children() == []


@pytest.mark.parametrize(("text", "reaches"), [("user", False), ("user,host=on", True)])
def test_the_loopback_of_the_host_is_reached_if_that_is_asked_for(
    passt: str, events: Recorded, text: str, *, reaches: bool
) -> None:
    argv = Passt(parse_net(text), events)._command.argv
    assert ("--no-map-gw" not in argv) is reaches


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", "127.0.0.53"),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.53\n", ""),
        ("# none\nnameserver\n", ""),
    ],
)
def test_a_resolver_on_the_loopback_is_reached_through_passt(
    passt: str, tmp_path: Path, servers: str, told: str
) -> None:
    (tmp_path / "resolv.conf").write_text(servers)
    options = _resolver(["passt"], str(tmp_path / "resolv.conf"))
    assert options[-1:] == ([told] if told else [])
    assert _resolver(["true"], str(tmp_path / "resolv.conf")) == [], "a passt without --dns-host"


def test_without_passt_it_is_said_where_to_get_it(
    memory: Memory, events: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match=r"--net user: needs passt, .*; apt-get install passt"):
        open_user(memory, events)


def test_memory_that_is_not_shared_takes_the_stream(passt: str, events: Recorded) -> None:
    memory = Memory()
    device = open_user(memory, events)
    assert isinstance(device.backend, ThreadBackend)  # type: ignore[attr-defined]
    device.close()
    memory.close()
