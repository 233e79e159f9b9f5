"""vCPU threads, driven by a script of exits."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event

import pytest

from vmm.bus import MmioBus
from vmm.cpu import COMPLAINTS, Reason, VcpuThread
from vmm.errors import GuestError, HostError
from vmm.events import Events
from vmm.kvm.exits import (
    Exit,
    Interrupted,
    MemoryFault,
    MmioRead,
    MmioWrite,
    SynchronousExternalAbort,
    SystemEvent,
    SystemEventType,
    Undecodable,
    Unknown,
)

SHUTDOWN = SystemEvent(SystemEventType.SHUTDOWN, ())


@dataclass
class Script:
    """A vCPU that replays exits, then runs until it is kicked."""

    exits: list[Exit]
    id: int = 0
    reads: list[int] = field(default_factory=list)
    aborts: int = 0
    kicked: Event = field(default_factory=Event)
    entered: Event = field(default_factory=Event)

    def run(self) -> Exit:
        if self.kicked.is_set():
            return Interrupted()
        if self.exits:
            return self.exits.pop(0)
        self.entered.set()
        self.kicked.wait()
        return Interrupted()

    def complete_read(self, value: int, /) -> None:
        self.reads.append(value)

    def inject_external_abort(self) -> None:
        self.aborts += 1

    def kick(self) -> None:
        self.kicked.set()

    def acknowledge_kick(self) -> None:
        self.kicked.clear()


class Register:
    value = 5

    def read(self, offset: int, size: int) -> int:
        if offset:
            raise GuestError("no such register")
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


class Broken(MmioBus):
    def write(self, address: int, size: int, value: int) -> None:
        raise ZeroDivisionError


class Recorded(Events):
    def __init__(self) -> None:
        self.names: list[str] = []

    def emit(self, event: str, **fields: object) -> None:
        self.names.append(event)


@dataclass
class Rig:
    script: Script
    thread: VcpuThread
    ends: queue.Queue[tuple[int, Reason]]
    events: Recorded


@pytest.fixture
def rig() -> Iterator[Rig]:
    bus, ends, events = MmioBus(), queue.Queue[tuple[int, Reason]](), Recorded()
    bus.attach(0x1000, 8, Register())
    script = Script([])
    thread = VcpuThread(script, bus, lambda *end: ends.put(end), events)
    yield Rig(script, thread, ends, events)
    thread.stop()
    thread.join()


def test_loads_and_stores_reach_the_bus(rig: Rig) -> None:
    rig.script.exits = [MmioRead(0x1000, 4), MmioWrite(0x1000, 4, 6), MmioRead(0x1000, 4), SHUTDOWN]
    rig.thread.start()
    assert rig.ends.get(timeout=5) == (0, SHUTDOWN)
    assert rig.script.reads == [5, 6]


def test_a_stop_gets_a_busy_vcpu_out_and_is_no_end_of_its_own(rig: Rig) -> None:
    rig.thread.start()
    rig.script.entered.wait(5)
    rig.thread.stop()
    rig.thread.join()
    assert rig.ends.empty()


def test_a_paused_vcpu_is_out_of_the_guest_until_it_is_resumed(rig: Rig) -> None:
    rig.thread.start()
    rig.script.entered.wait(5)
    rig.script.entered.clear()
    rig.thread.pause()
    rig.thread.wait_paused()
    assert not rig.script.entered.is_set()
    rig.thread.resume()
    assert rig.script.entered.wait(5)


def test_a_paused_vcpu_can_be_stopped(rig: Rig) -> None:
    rig.thread.start()
    rig.thread.pause()
    rig.thread.wait_paused()
    rig.thread.stop()
    rig.thread.resume()  # too late: a stop is for good
    rig.thread.join()


def test_a_guests_fault_is_an_event_and_the_guest_goes_on(rig: Rig) -> None:
    rig.script.exits = [MmioRead(0x1004, 4), MmioRead(0x1000, 4), SHUTDOWN]
    rig.thread.start()
    assert rig.ends.get(timeout=5) == (0, SHUTDOWN)
    assert rig.events.names == ["guest-error"]
    assert rig.script.reads == [5]


def test_an_access_that_cannot_be_decoded_is_aborted(rig: Rig) -> None:
    rig.script.exits = [Undecodable(0, 0x9000), SHUTDOWN]
    rig.thread.start()
    rig.ends.get(timeout=5)
    assert rig.script.aborts == 1
    assert rig.events.names == ["undecodable-access"]


def test_a_guest_cannot_fill_the_log(rig: Rig) -> None:
    faults: list[Exit] = [
        Undecodable(0, 0x9000),
        SynchronousExternalAbort(0, 0, 0, 0x9000),
        MmioRead(0x1004, 4),
    ]
    rig.script.exits = [*faults * COMPLAINTS, SHUTDOWN]
    rig.thread.start()
    rig.ends.get(timeout=5)
    assert rig.script.aborts == 2 * COMPLAINTS, "each is answered"
    assert len(rig.events.names) == COMPLAINTS


@pytest.mark.parametrize("exit_", [MemoryFault(0, 0x8000, 4096), Unknown(99)])
def test_an_exit_that_nobody_can_answer_ends_the_vcpu_with_an_explanation(
    rig: Rig, exit_: Exit
) -> None:
    rig.script.exits = [exit_]
    rig.thread.start()
    _, reason = rig.ends.get(timeout=5)
    assert isinstance(reason, HostError)
    assert reason.hint


def test_a_bug_in_a_device_ends_the_vcpu_and_is_told(rig: Rig) -> None:
    rig.script.exits = [MmioWrite(0x1000, 4, 1)]
    rig.thread = VcpuThread(rig.script, Broken(), rig.thread._on_end, rig.events)
    rig.thread.start()
    _, reason = rig.ends.get(timeout=5)
    assert isinstance(reason, ZeroDivisionError)
