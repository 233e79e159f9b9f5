"""Holding a machine: the order of things, who counts as a holder, and a reset meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.machine.test_vcpu_thread import Script
from tests.recorded import Recorded
from vmm.bus import MmioBus
from vmm.errors import HostError
from vmm.kvm.exits import MmioRead
from vmm.machine import vcpu_thread
from vmm.machine.pause import CNTVCT_EL0, Pause
from vmm.machine.vcpu_thread import VcpuThread


@dataclass
class Counter:
    """A vCPU whose virtual counter runs whenever somebody looks."""

    told: list[str]
    value: int = 100

    def get_one_reg(self, register: int, /) -> int:
        assert register == CNTVCT_EL0
        self.told.append("read")
        self.value += 10
        return self.value

    def set_one_reg(self, register: int, value: int, /) -> None:
        assert register == CNTVCT_EL0
        self.told.append(f"set {value}")


@dataclass
class Device:
    told: list[str]

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


@dataclass
class Cycle:
    threads: list[VcpuThread] = field(default_factory=list)
    vcpus: list[Counter] = field(default_factory=list)


class Stuck:
    """A register whose load does not end before it may."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def read(self, offset: int, size: int) -> int:
        self.reached.set()
        self.go.wait(20)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        raise NotImplementedError


class Rig:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.stuck = Stuck()
        bus = MmioBus()
        bus.attach(0x1000, 8, self.stuck)
        self.scripts = [Script([], id=number) for number in range(2)]
        self.cycle = Cycle(
            [VcpuThread(each, bus, lambda *_: None, Recorded()) for each in self.scripts],
            [Counter(self.told)],
        )
        self.pause = Pause(lambda: [Device(self.told)])

    def start(self) -> None:
        self.pause.begin(self.cycle)
        for thread in self.cycle.threads:
            thread.start()

    def enters(self) -> bool:
        return all(script.entered.wait(5) for script in self.scripts)

    def left(self) -> None:
        for script in self.scripts:
            script.entered.clear()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.stuck.go.set()
    for thread in rig.cycle.threads:
        thread.stop()
        assert thread.join(5)


def test_devices_are_paused_once_no_vcpu_is_in_the_guest(rig: Rig) -> None:
    rig.start()
    assert rig.enters()
    rig.left()
    rig.pause.pause()
    assert rig.pause.held
    assert rig.told == ["pause", "read"]
    assert not any(script.entered.is_set() for script in rig.scripts)
    rig.pause.resume()
    assert rig.told == ["pause", "read", "resume", "set 110"], "time has stood still"
    assert rig.enters()


def test_the_machine_goes_on_when_the_last_holder_lets_go(rig: Rig) -> None:
    rig.start()
    assert rig.enters()
    rig.left()
    rig.pause.pause()
    rig.pause.pause()
    rig.pause.resume()
    assert rig.pause.held
    assert rig.told == ["pause", "read"]
    assert not any(script.entered.wait(0.05) for script in rig.scripts)
    rig.pause.resume()
    assert rig.enters()
    with pytest.raises(ValueError, match="not paused"):
        rig.pause.resume()


def test_a_machine_can_be_held_before_its_first_instruction(rig: Rig) -> None:
    rig.pause.pause()
    rig.start()
    for thread in rig.cycle.threads:
        thread.wait_paused()
    assert not any(script.entered.is_set() for script in rig.scripts)
    rig.pause.resume()
    assert rig.enters()


def test_a_reset_does_not_let_go(rig: Rig) -> None:
    rig.start()
    rig.pause.pause()
    rig.pause.end()
    next_one = Rig()
    next_one.pause = rig.pause
    next_one.start()
    for thread in next_one.cycle.threads:
        thread.wait_paused()
    rig.pause.resume()
    assert next_one.enters()
    assert next_one.told == [], "the new VM's counter was never noted"
    for thread in next_one.cycle.threads:
        thread.stop()
        assert thread.join(5)


def test_a_vcpu_that_does_not_leave_is_an_error_and_the_machine_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vcpu_thread, "STOP_TIMEOUT", 0.2)
    rig.scripts[1].exits = [MmioRead(0x1000, 4)]
    rig.start()
    assert rig.scripts[0].entered.wait(5)
    assert rig.stuck.reached.wait(5)
    rig.scripts[0].entered.clear()
    with pytest.raises(HostError, match="vCPU 1 did not leave the guest"):
        rig.pause.pause()
    assert not rig.pause.held
    rig.stuck.go.set()
    assert rig.enters()
