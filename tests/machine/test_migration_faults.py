"""Whatever fails at whatever step of a live migration: one machine runs the guest, or none.

Both ends are pyvmm's, over sockets, with RAM, a disk's lock and an event loop each. There is no
VM: what is asked of KVM is a stand-in's. tests/lab/test_migration.py moves guests.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread, active_count
from types import SimpleNamespace
from typing import Any

import pytest

from tests.machine.relay import Fault, Relay, Step
from tests.state.golden import golden
from tests.state.moving import PAGE, Stores, ledger, ram
from tests.state.snapshots import STATE
from vmm.config import MachineConfig
from vmm.dirty_pages import DirtyPages
from vmm.errors import HostError, UserError, VmmError
from vmm.events import Events
from vmm.image_lock import lock_image, unlock_image
from vmm.loop import Loop
from vmm.machine import incoming, outgoing, snapshot
from vmm.machine.incoming import Incoming
from vmm.machine.outgoing import Gone, Outgoing
from vmm.machine.snapshot import Parts
from vmm.state import precopy, stream
from vmm.state.manifest import DiskFile

PIECE = 64
SIZE = 4 * PIECE * PAGE


class Log(Stores):
    """KVM's log: the guest has stored to pages during the first round, and the second one."""

    def __init__(self, region: Any) -> None:
        super().__init__(region)
        self.on = False
        self._rounds = 0

    def start(self) -> None:
        self.on = True

    def stop(self) -> None:
        self.on = False

    forget = stop

    def fetch(self, into: Any) -> int:
        self._rounds += 1
        if self._rounds != 2:
            for page in (1, PIECE + 1):
                self.store(page, self._rounds)
        return super().fetch(into)


class Disk:
    """The image at *path*, as one end has it open."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR)
        self.has = False

    def settle(self) -> os.stat_result:
        return os.fstat(self.fd)

    def check(self, _facts: object) -> None:
        self.take_back()

    def lend(self) -> None:
        unlock_image(self.fd)
        self.has = False

    def take_back(self) -> None:
        lock_image(self.fd, "--disk", read_only=False)
        self.has = True

    def close(self) -> None:
        os.close(self.fd)


class Devices:
    """Virtio devices: one disk."""

    def __init__(self, disk: Disk) -> None:
        self.devices = [disk]
        self.resumed = False

    def resume(self) -> None:
        self.resumed = True


class Source:
    """The machine that the guest is to leave."""

    def __init__(self, owned: ExitStack, disk: Path) -> None:
        region = ram(owned, SIZE)
        region.view[: SIZE // 2] = os.urandom(SIZE // 2)
        self.log = Log(region)
        own = DirtyPages(region.host_address, SIZE)
        self.space: Any = SimpleNamespace(ram_region=region, memory=SimpleNamespace(dirty=own))
        slots = SimpleNamespace(find=lambda _base: object())
        self.power: Any = SimpleNamespace(vm=self.log, slots=slots, threads=[])
        self.disk = Disk(disk)
        owned.callback(self.disk.close)
        self.disk.take_back()
        self.held = 0
        self.counter = 0
        self.loop = owned.enter_context(Loop())
        self.result: Gone | VmmError | None = None

    def pause(self) -> None:
        self.held += 1

    def resume(self) -> None:
        self.held -= 1

    def parts(self) -> Parts:
        none: Any = None
        devices: Any = Devices(self.disk)
        return Parts(uart=none, rtc=none, gpio=none, vmgenid=none, virtio=devices)

    def move(self, sockets: list[socket.socket]) -> Outgoing:
        config = MachineConfig(image=Path("/guest"), memory=SIZE)
        system: Any = None

        def end(result: Gone | VmmError) -> None:
            self.result = result

        moving = Outgoing(
            self,
            config,
            snapshot.describe(config),
            sockets,
            system=system,
            loop=self.loop,
            events=Events(),
            goal=0.0,
            ledger=ledger(SIZE),
            seen=golden("fwb").cpu,
            on_end=end,
        )
        moving.start()
        self.loop.run(until=lambda: self.result is not None)
        if isinstance(self.result, VmmError) and not moving.gave_up:
            moving.go_on()
        return moving


class Destination(Thread):
    """The machine that it is to come to."""

    def __init__(self, listener: socket.socket, disk: Path) -> None:
        super().__init__()
        self._listener, self._path = listener, disk
        self.runs = self.resumed = False
        self.error: VmmError | None = None
        self.memory = b""

    def run(self) -> None:
        with ExitStack() as owned:
            disk = Disk(self._path)
            owned.callback(disk.close)
            none: Any = None
            devices: Any = Devices(disk)
            vmgenid: Any = SimpleNamespace(restore=lambda _id: None)
            space: Any = SimpleNamespace(ram_region=ram(owned, SIZE))
            try:
                moving = owned.enter_context(Incoming(self._listener))
            except VmmError as error:
                self.error = error
                return
            try:
                self.runs = moving.apply(
                    none,
                    Parts(uart=none, rtc=none, gpio=none, vmgenid=vmgenid, virtio=devices),
                    space,
                    ledger(SIZE),
                    owned.enter_context(Loop()),
                )
            except VmmError as error:
                moving.refuse(error)
                self.error = error
            if self.runs:
                moving.started()
            self.resumed = devices.resumed
            self.memory = bytes(space.ram_region.view)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for KVM."""
    state = replace(STATE, mmio=(), pci=())
    monkeypatch.setattr(outgoing, "DirtyLog", lambda vm, *_: vm)
    monkeypatch.setattr(outgoing, "PATIENCE", 5.0)
    monkeypatch.setattr(snapshot, "check", lambda *_: None)
    monkeypatch.setattr(snapshot, "collect", lambda *_: state)
    monkeypatch.setattr(snapshot, "settle", lambda *_: (DiskFile("/disk", 0, 0),))
    monkeypatch.setattr(snapshot, "disks", lambda devices: devices.devices)
    monkeypatch.setattr(incoming, "disks", lambda devices: devices.devices)
    monkeypatch.setattr(incoming, "put_in_place", lambda *_: None)
    monkeypatch.setattr(Incoming, "_check_host", lambda self: self.cpu)
    monkeypatch.setattr(precopy, "PIECE", PIECE)
    monkeypatch.setattr(stream, "PATIENCE", 1)


class Run:
    """A move over *connections*, with *fault*, from start to end."""

    def __init__(self, directory: Path, connections: int, fault: Fault | None = None) -> None:
        disk = directory / "disk"
        disk.touch()
        with ExitStack() as owned:
            source = Source(owned, disk)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(directory / "socket"))
            listener.listen()
            there = Destination(listener, disk)
            relay = Relay(str(directory / "socket"), connections, fault)
            owned.callback(relay.close)
            there.start()
            moving = source.move(relay.connect())
            there.join(10)
            assert not there.is_alive()
            self.steps, self.done = relay.steps, relay.done
            self.result, self.gave_up = source.result, moving.gave_up
            self.held, self.logging, self.has_disk = source.held, source.log.on, source.disk.has
            self.memory = bytes(source.space.ram_region.view)
        self.runs_there, self.resumed_there = there.runs, there.resumed
        self.memory_there, self.error_there = there.memory, there.error

    @property
    def outcome(self) -> str:
        """Return where the guest is: here, there, or nowhere, which is paused here."""
        assert self.resumed_there is self.runs_there
        if self.runs_there:
            assert self.memory_there == self.memory
            assert self.gave_up
            assert self.held == 1
            assert not self.has_disk
            return "moved" if isinstance(self.result, Gone) else "there, unknown"
        assert isinstance(self.result, HostError | UserError)
        if self.gave_up:
            assert self.held == 1
            assert not self.has_disk
            return "nowhere"
        assert (self.held, self.logging, self.has_disk) == (0, False, True)
        return "here"


PAGES = {
    1: ["pages", "pages", "zeroes", "zeroes", "round", *["pages", "pages", "round"] * 2],
    2: ["pages", "zeroes", "round", *["pages", "round"] * 2],
}
"""What each of so many connections has of pages, as there are four pieces of RAM."""

KILLED = [(where, how) for where in ("before", "inside", "after") for how in ("cut", "death")]
SAID = [("instead", how) for how in ("silence", "garbage", "failed")]


def steps(connections: int) -> list[Step]:
    """Return all frames of a move, by sender, connection and order."""
    found = []
    for connection in range(connections):
        ends = (["offer"], ["rest", "go"]) if connection == 0 else (["join"], [])
        said = [*ends[0], *PAGES[connections], *ends[1]]
        found += [Step("source", connection, index, what) for index, what in enumerate(said)]
    answers = ["answer", "ready", "running"]
    return found + [Step("destination", 0, index, what) for index, what in enumerate(answers)]


FAULTS = [
    (connections, Fault(step, where, how))
    for connections in (1, 2)
    for step in steps(connections)
    for where, how in (*KILLED, *SAID)
]


def expected(fault: Fault, connections: int) -> str:
    """Return the outcome of *fault*."""
    step = fault.step
    arrives = fault.where == "after"
    if step.what == "running":
        return "moved" if arrives else "there, unknown"
    if step.what == "go":
        return "there, unknown" if arrives else "nowhere"
    if step.what == "ready" and arrives:
        return "nowhere"
    last = step.connection and step.number == len(PAGES[connections])
    if last and arrives and fault.how == "cut":
        return "moved"  # this connection has done all that it had to do
    return "here"


def name(value: object) -> str:
    if isinstance(value, Fault):
        step = value.step
        return f"{step.what}-{step.connection}.{step.number}-{value.where}-{value.how}"
    return str(value)


def kept() -> tuple[int, int]:
    """Return the numbers of this process's threads and descriptors."""
    return active_count(), len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize("connections", [1, 2])
def test_a_move_has_these_steps(tmp_path: Path, connections: int) -> None:
    run = Run(tmp_path, connections)
    assert run.outcome == "moved"
    by_order = sorted(run.steps, key=lambda step: (step.sender != "source", *step[1:3]))
    assert by_order == steps(connections)


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) > 300


@pytest.mark.parametrize(("connections", "fault"), FAULTS, ids=name)
def test_one_machine_runs_the_guest_or_none(tmp_path: Path, connections: int, fault: Fault) -> None:
    """Nothing stays at the destination if it does not run the guest: no thread, no descriptor."""
    before = kept()
    run = Run(tmp_path, connections, fault)
    assert run.done
    assert run.outcome == expected(fault, connections), (run.result, run.error_there)
    assert kept() == before
