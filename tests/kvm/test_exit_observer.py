"""Counters of exits, against what the guest did and against KVM's own statistics."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable

import pytest

from tests.kvm.tiny import DEVICE, Again, Echo, Spin, Store, Tiny
from vmm._native import lib
from vmm.kvm.exit_observer import KICK, NAMES, Block, ExitObserver, reason_name
from vmm.kvm.exits import Interrupted
from vmm.kvm.mmio_fastpath import MmioFastpath, Shadow, Unchanged
from vmm.kvm.stats import Stats

pytestmark = pytest.mark.kvm
Start = Callable[..., Tiny]
BLOCK = 1 << lib.PYVMM_BLOCK_SHIFT
MMIO = "mmio_exit_user" if platform.machine() == "aarch64" else "mmio_exits"


def test_exits_are_counted_by_reason_and_address(tiny: Start) -> None:
    guest = tiny(Store(0, 1), Store(1, 2), Echo(4, BLOCK), Spin())
    observer = ExitObserver()
    guest.vcpu.observe(observer)
    for _ in range(4):
        guest.vcpu.run()
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()
    counts = observer.counts()
    assert counts.reasons == {"MMIO": 4, KICK: 1}
    assert counts.blocks == [Block(DEVICE, BLOCK, 1, 2, 0), Block(DEVICE + BLOCK, BLOCK, 0, 1, 0)]
    assert counts.elsewhere == 0


def test_what_c_answers_is_counted_too(tiny: Start) -> None:
    guest = tiny(Store(0, 7), Echo(4, 8), Spin())
    observer = ExitObserver()
    guest.vcpu.observe(observer)
    guest.vcpu.set_answers(MmioFastpath([Unchanged(DEVICE, 7), Shadow(DEVICE + 4, 5)]))
    guest.vcpu.run()
    counts = observer.counts()
    assert counts.blocks == [Block(DEVICE, BLOCK, 1, 2, 2)]
    assert counts.total == guest.vcpu.exits == 3
    assert guest.vcpu.answered == 2


def test_the_counters_agree_with_kvms_own(tiny: Start) -> None:
    guest = tiny(Store(0, 1), Echo(1, 2), Again())
    observer = ExitObserver()
    guest.vcpu.observe(observer)
    guest.vcpu.set_answers(MmioFastpath([Shadow(DEVICE + 1, 5)]))
    with Stats(guest.vcpu) as stats:
        before = stats.read()
        for _ in range(1000):
            guest.vcpu.run()
        after = stats.read()
    counts = observer.counts()
    assert after[MMIO] - before[MMIO] == counts.reasons["MMIO"]
    assert after["exits"] - before["exits"] >= counts.total
    assert sum(block.loads + block.stores for block in counts.blocks) == counts.reasons["MMIO"]


def test_a_signal_is_a_kick_to_us_and_a_signal_exit_to_kvm(tiny: Start) -> None:
    guest = tiny(Spin())
    observer = ExitObserver()
    guest.vcpu.observe(observer)
    with Stats(guest.vcpu) as stats:
        for _ in range(5):
            timer = threading.Timer(0.005, guest.vcpu.kick)
            timer.start()
            guest.vcpu.run()
            timer.join()
            guest.vcpu.acknowledge_kick()
        signals = stats.read()["signal_exits"]
    assert observer.counts().reasons == {KICK: 5}
    assert 0 < signals <= 5, "a kick before the guest is entered is no exit"


def test_observing_begins_in_the_middle_of_a_run(tiny: Start) -> None:
    guest = tiny(Store(0, 1), Again())
    for _ in range(10):
        guest.vcpu.run()
    observer = ExitObserver()
    guest.vcpu.observe(observer)
    for _ in range(3):
        guest.vcpu.run()
    assert observer.counts().total == 3
    assert guest.vcpu.exits == 13


def test_a_guest_that_touches_many_addresses_fills_no_memory(tiny: Start) -> None:
    """Blocks without room in the table are counted together: the sum is right."""
    observer = ExitObserver()
    blocks = 70 if platform.machine() != "aarch64" else 7  # a tiny guest reaches 4 KiB on arm64
    guest = tiny(*(Store(block * BLOCK, 1) for block in range(blocks)), Again())
    guest.vcpu.observe(observer)
    for entry in observer.c.blocks:
        entry.number = (1 << 64) - 1  # taken by an address that no guest has
    for _ in range(blocks):
        guest.vcpu.run()
    counts = observer.counts()
    assert counts.elsewhere == counts.reasons["MMIO"] == blocks


def test_every_reason_has_one_name() -> None:
    assert reason_name(lib.KVM_EXIT_MMIO) == "MMIO"
    assert reason_name(63) == "63"
    assert len(set(NAMES.values())) == len(NAMES)
