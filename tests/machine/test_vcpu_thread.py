"""vCPU threads, driven by a script of exits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event

import pytest

from tests.recorded import Recorded
from vmm.bus import MmioBus
from vmm.errors import GuestError, HostError
from vmm.events import COMPLAINTS, Events
from vmm.kvm.exits import (
    Debug,
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
from vmm.machine import vcpu_thread
from vmm.machine.vcpu_thread import Reason, VcpuThread

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
    assert thread.join(5)


def test_loads_and_stores_reach_the_bus(rig: Rig) -> None:
    rig.script.exits = [MmioRead(0x1000, 4), MmioWrite(0x1000, 4, 6), MmioRead(0x1000, 4), SHUTDOWN]
    rig.thread.start()
    assert rig.ends.get(timeout=5) == (0, SHUTDOWN)
    assert rig.script.reads == [5, 6]


def test_a_stop_gets_a_busy_vcpu_out_and_is_no_end_of_its_own(rig: Rig) -> None:
    rig.thread.start()
    rig.script.entered.wait(5)
    rig.thread.stop()
    assert rig.thread.join(5)
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


BREAKPOINT = Debug(0xF200_0000, 0)


def test_a_debug_exit_holds_the_vcpu_until_it_is_released(rig: Rig) -> None:
    told = queue.Queue[tuple[int, Debug]]()
    rig.thread.on_debug = lambda *exit_: told.put(exit_)
    rig.script.exits = [BREAKPOINT]
    rig.thread.start()
    assert told.get(timeout=5) == (0, BREAKPOINT)
    assert rig.thread.debug == BREAKPOINT
    assert rig.thread.held
    rig.thread.pause()
    rig.thread.wait_paused()
    rig.thread.resume()
    assert not rig.script.entered.wait(0.1)
    rig.thread.release()
    assert rig.script.entered.wait(5)
    assert rig.thread.debug is None


def test_a_held_vcpu_stays_out_when_the_machine_resumes(rig: Rig) -> None:
    rig.thread.start()
    rig.script.entered.wait(5)
    rig.thread.pause()
    rig.thread.wait_paused()
    rig.script.entered.clear()
    rig.script.kicked.clear()
    rig.thread.hold()
    rig.thread.resume()
    assert not rig.script.entered.wait(0.1)
    rig.thread.release()
    assert rig.script.entered.wait(5)


def test_a_held_vcpu_can_be_stopped(rig: Rig) -> None:
    rig.thread.on_debug = lambda *_: None
    rig.script.exits = [BREAKPOINT]
    rig.thread.start()
    rig.thread.stop()
    assert rig.thread.join(5)
    assert rig.ends.empty()


def test_a_debug_exit_that_nobody_asked_for_is_the_hosts_failure(rig: Rig) -> None:
    rig.script.exits = [BREAKPOINT]
    rig.thread.start()
    _, reason = rig.ends.get(timeout=5)
    assert isinstance(reason, HostError)


def test_a_paused_vcpu_can_be_stopped(rig: Rig) -> None:
    rig.thread.start()
    rig.thread.pause()
    rig.thread.wait_paused()
    rig.thread.stop()
    rig.thread.resume()  # too late: a stop is for good
    assert rig.thread.join(5)


def test_a_guests_fault_is_an_event_and_the_guest_goes_on(rig: Rig) -> None:
    rig.script.exits = [MmioRead(0x1004, 4), MmioRead(0x1000, 4), SHUTDOWN]
    rig.thread.start()
    assert rig.ends.get(timeout=5) == (0, SHUTDOWN)
    assert rig.events.names() == ["guest-error"]
    assert rig.script.reads == [5]


def test_an_access_that_cannot_be_decoded_is_aborted(rig: Rig) -> None:
    rig.script.exits = [Undecodable(0, 0x9000), SHUTDOWN]
    rig.thread.start()
    rig.ends.get(timeout=5)
    assert rig.script.aborts == 1
    assert rig.events.names() == ["undecodable-access"]


def test_a_guest_cannot_fill_the_log(rig: Rig) -> None:
    faults: list[Exit] = [
        Undecodable(0, 0x9000),
        SynchronousExternalAbort(0, 0, 0, 0x9000),
        MmioRead(0x1004, 4),
    ]
    rig.script.exits = [*faults * 2 * COMPLAINTS, SHUTDOWN]
    rig.thread.start()
    rig.ends.get(timeout=5)
    assert rig.script.aborts == 4 * COMPLAINTS, "each is answered"
    assert len(rig.events.seen) == len(faults) * COMPLAINTS


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


class Waiting(MmioBus):
    """A device in front of something that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = Event(), Event()

    def write(self, address: int, size: int, value: int) -> None:
        self.entered.set()
        assert self.go.wait(30)


@pytest.fixture
def waiting() -> Iterator[tuple[Waiting, list[VcpuThread]]]:
    """Two vCPUs, the first of which is in an exit and stays there."""
    bus = Waiting()
    scripts = [Script([MmioWrite(0x1000, 4, 1)]), Script([], id=1)]
    threads = [VcpuThread(script, bus, lambda *_end: None, Events()) for script in scripts]
    for thread in threads:
        thread.start()
    assert bus.entered.wait(5)
    yield bus, threads
    bus.go.set()
    assert all(thread.join(5) for thread in threads)


def test_a_vcpu_that_waits_for_others_is_helped_out(
    waiting: tuple[Waiting, list[VcpuThread]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, threads = waiting
    monkeypatch.setattr(vcpu_thread, "CANCEL_INTERVAL", 0.1)
    began = time.monotonic()
    vcpu_thread.stop(threads, bus.go.set)
    assert time.monotonic() - began < 2


def test_one_that_cannot_be_helped_keeps_no_other_from_stopping(
    waiting: tuple[Waiting, list[VcpuThread]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, threads = waiting
    monkeypatch.setattr(vcpu_thread, "CANCEL_INTERVAL", 0.05)
    monkeypatch.setattr(vcpu_thread, "STOP_TIMEOUT", 0.3)
    asked: list[int] = []
    with pytest.raises(HostError, match=r"vCPU 0 did not leave the guest; .*may hang"):
        vcpu_thread.stop(threads, lambda: asked.append(1))
    assert len(asked) > 1
    assert threads[1].join(0)


def test_a_host_without_threads_is_one_clear_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(HostError, match=r"cannot start thread vcpu0: .*; raise the limit"):
            rig.thread.start()
    vcpu_thread.stop([rig.thread], lambda: None)
