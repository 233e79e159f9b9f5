"""What C does for a vCPU, as others see it: other vCPUs, the next exit, and its thread later."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from tests.kvm.tiny import ARCH, DEVICE, Again, Spin, Store, Tiny
from vmm.kvm.exits import Interrupted, MmioWrite
from vmm.kvm.mmio_fastpath import MmioFastpath, Sink, ToSink
from vmm.kvm.vcpu import Vcpu

pytestmark = pytest.mark.kvm
Start = Callable[..., Tiny]
KICK = signal.SIGRTMIN + 1
ROOM = 1 << 13 if os.uname().machine == "aarch64" else 1 << 17
"""Bytes that two vCPUs put: an exit of an emulated host takes half a millisecond."""


def test_vcpus_that_put_into_one_sink_lose_no_byte(tiny: Start) -> None:
    """They put until it is full: what was answered is what is in it."""
    guest = tiny(Store(0, 7), Again())
    with guest.vm.create_vcpu(1) as second, Sink(size=ROOM, headroom=0) as sink:
        ARCH.point(guest.vm, second)
        sink.take_stores(True)  # noqa: FBT003
        answers = MmioFastpath([ToSink(DEVICE, sink)])
        together = threading.Barrier(2)
        ends = []

        def run(vcpu: Vcpu) -> None:
            vcpu.set_answers(answers)
            together.wait(10)
            ends.append(vcpu.run())
            vcpu.set_answers(None)

        threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in (guest.vcpu, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == [MmioWrite(DEVICE, 1, 7)] * 2  # each found it full
        assert guest.vcpu.answered + second.answered == ROOM
        assert sink.drain(ROOM) == b"\7" * ROOM


def test_a_store_has_no_bytes_of_the_store_before_it(tiny: Start) -> None:
    """KVM writes as many bytes of kvm_run as the store has, and leaves the others."""
    guest = tiny(Store(0, 0x1234, 2), Store(4, 0x56), Spin())
    assert guest.vcpu.run() == MmioWrite(DEVICE, 2, 0x1234)
    guest.vcpu.complete_read(0xAABB_CCDD_EEFF_1122)  # as a load in between would
    assert guest.vcpu.run() == MmioWrite(DEVICE + 4, 1, 0x56)


def test_a_thread_that_left_the_guest_gets_no_signal(tiny: Start) -> None:
    """The kick waits in immediate_exit; the thread may be busy with something else, or gone."""
    guest = tiny(Store(0, 1), Spin())
    guest.vcpu.run()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    try:
        guest.vcpu.kick()
        assert KICK not in signal.sigpending()
        assert guest.vcpu.run() == Interrupted()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
