"""Running a vCPU: exits, the kick, and the answers in C."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.kvm.tiny import DATA, DATA_PAGES, DEVICE, Again, Echo, Spin, Store, Tiny, Touch
from vmm._native import ffi
from vmm.kvm.capability import Cap, capabilities
from vmm.kvm.exits import Interrupted, MmioRead, MmioWrite
from vmm.kvm.fd import KvmError
from vmm.kvm.mmio_fastpath import (
    InterruptAck,
    InterruptStatus,
    MmioFastpath,
    Shadow,
    Sink,
    ToEventfd,
    ToSink,
    Unchanged,
)
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag

pytestmark = pytest.mark.kvm
Start = Callable[..., Tiny]


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_store_to_no_memory_exits_with_its_address_and_value(tiny: Start) -> None:
    guest = tiny(Store(0, 0x5A), Spin())
    assert guest.vcpu.run() == MmioWrite(DEVICE, 1, 0x5A)


def test_a_load_sees_what_complete_read_gave(tiny: Start) -> None:
    guest = tiny(Echo(4, 8), Spin())
    assert guest.vcpu.run() == MmioRead(DEVICE + 4, 1)
    guest.vcpu.complete_read(0xA5)
    assert guest.vcpu.run() == MmioWrite(DEVICE + 8, 1, 0xA5)


def test_a_kick_before_the_run_ends_it_at_once(tiny: Start) -> None:
    guest = tiny(Spin())
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()


def test_a_kick_from_another_thread_ends_a_guest_that_never_exits(tiny: Start) -> None:
    guest = tiny(Spin())
    for _ in range(50):
        timer = threading.Timer(0.002, guest.vcpu.kick)
        timer.start()
        assert guest.vcpu.run() == Interrupted()
        timer.join()
        guest.vcpu.acknowledge_kick()


def test_a_kick_does_not_lose_the_load_in_flight(tiny: Start) -> None:
    guest = tiny(Echo(0, 1), Spin())
    guest.vcpu.run()
    guest.vcpu.complete_read(7)
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()
    guest.vcpu.acknowledge_kick()
    assert guest.vcpu.run() == MmioWrite(DEVICE + 1, 1, 7)


def test_c_answers_doorbells_sinks_and_shadows(tiny: Start, eventfd: int) -> None:
    guest = tiny(Store(0, 1), Store(1, ord("x")), Echo(2, 3), Spin())
    with Sink() as sink:
        sink.take_stores(True)  # noqa: FBT003
        answers = MmioFastpath(
            [ToEventfd(DEVICE, eventfd), ToSink(DEVICE + 1, sink), Shadow(DEVICE + 2)]
        )
        answers.set_value(DEVICE + 2, 0x42)
        guest.vcpu.set_answers(answers)
        assert guest.vcpu.run() == MmioWrite(DEVICE + 3, 1, 0x42)
        assert os.eventfd_read(eventfd) == 1
        assert sink.drain() == b"x"
        assert (guest.vcpu.exits, guest.vcpu.answered) == (4, 3)
        guest.vcpu.set_answers(None)


def test_a_sink_that_takes_no_stores_leaves_them_to_python(tiny: Start) -> None:
    guest = tiny(Store(0, 9), Again())
    with Sink(size=2, headroom=0) as sink:
        guest.vcpu.set_answers(MmioFastpath([ToSink(DEVICE, sink)]))
        assert guest.vcpu.run() == MmioWrite(DEVICE, 1, 9)
        sink.take_stores(True)  # noqa: FBT003
        assert guest.vcpu.run() == MmioWrite(DEVICE, 1, 9)  # the third finds it full
        assert sink.drain() == b"\t\t"
        guest.vcpu.set_answers(None)


def test_c_drops_a_store_of_what_is_there_already(tiny: Start) -> None:
    guest = tiny(Store(0, 5), Store(0, 5), Store(0, 6), Spin())
    answers = MmioFastpath([Unchanged(DEVICE, 0)])
    guest.vcpu.set_answers(answers)
    assert guest.vcpu.run() == MmioWrite(DEVICE, 1, 5)
    answers.set_value(DEVICE, 5)
    assert guest.vcpu.run() == MmioWrite(DEVICE, 1, 6)
    assert guest.vcpu.answered == 1
    guest.vcpu.set_answers(None)


def test_c_answers_for_an_interrupt(tiny: Start) -> None:
    """Loads of its status, and acknowledgements; standing bits stay."""
    status, acknowledge, seen = 0x60, 0x64, 0x100
    look = Echo(status, seen, 4)
    guest = tiny(look, Store(acknowledge, 1, 4), look, Store(acknowledge, 3, 4), look, Spin())
    interrupt = ffi.new("struct pyvmm_interrupt *", {"status": 2, "standing": 1, "eventfd": -1})
    answers = MmioFastpath([])
    answers.add(
        [
            InterruptStatus(DEVICE + status, interrupt),
            InterruptAck(DEVICE + acknowledge, interrupt),
        ]
    )
    guest.vcpu.set_answers(answers)
    for expected in (3, 3, 1):
        assert guest.vcpu.run() == MmioWrite(DEVICE + seen, 4, expected)
    assert (guest.vcpu.exits, guest.vcpu.answered) == (8, 5)
    guest.vcpu.set_answers(None)


def test_an_interrupt_has_registers_of_four_bytes(tiny: Start) -> None:
    """Other accesses that start there go to Python."""
    guest = tiny(Echo(0, 8), Store(4, 1), Spin())
    interrupt = ffi.new("struct pyvmm_interrupt *", {"status": 1, "eventfd": -1})
    guest.vcpu.set_answers(
        MmioFastpath([InterruptStatus(DEVICE, interrupt), InterruptAck(DEVICE + 4, interrupt)])
    )
    assert guest.vcpu.run() == MmioRead(DEVICE, 1)
    guest.vcpu.complete_read(0)
    assert guest.vcpu.run() == MmioWrite(DEVICE + 8, 1, 0)
    assert guest.vcpu.run() == MmioWrite(DEVICE + 4, 1, 1)
    assert interrupt.status == 1
    guest.vcpu.set_answers(None)


def test_an_ioeventfd_takes_the_store_in_the_kernel(tiny: Start, eventfd: int) -> None:
    guest = tiny(Store(0, 1), Store(0, 2), Store(4, 3), Spin())
    guest.vm.ioeventfd(DEVICE, 1, eventfd, datamatch=2)
    assert guest.vcpu.run() == MmioWrite(DEVICE, 1, 1)
    assert guest.vcpu.run() == MmioWrite(DEVICE + 4, 1, 3)
    assert os.eventfd_read(eventfd) == 1
    with pytest.raises(KvmError, match="an eventfd listens"):
        guest.vm.ioeventfd(DEVICE, 1, eventfd, datamatch=2)
    guest.vm.ioeventfd(DEVICE, 1, eventfd, datamatch=2, deassign=True)


def test_the_dirty_log_names_the_pages_that_were_written(tiny: Start) -> None:
    guest = tiny(Touch(0), Touch(3), Store(0, 0), Spin(), data_flags=MemFlag.LOG_DIRTY_PAGES)
    guest.vcpu.run()
    slot = guest.slots.find(DATA)
    assert slot is not None
    assert guest.vm.get_dirty_log(slot.number, DATA_PAGES)[0] == 0b1001
    assert guest.vm.get_dirty_log(slot.number, DATA_PAGES)[0] == 0
    assert guest.data.view[0] == 1


def test_a_capability_of_a_vm_is_asked_on_a_vm(system: System) -> None:
    with system.create_vm() as vm:
        assert vm.check_extension(Cap.USER_MEMORY) == 1
        assert vm.check_extension(Cap.NR_MEMSLOTS) >= 32
        assert vm.check_extension(Cap.IMMEDIATE_EXIT) == 1


def test_every_capability_can_be_asked_for(system: System) -> None:
    assert len(capabilities()) > 240
    for number in capabilities().values():
        try:
            assert system.check_extension(number) >= 0
        except KvmError as error:
            assert "KVM_CHECK_EXTENSION(capability=" in str(error)  # noqa: PT017


def test_a_closed_vcpu_ignores_kicks(tiny: Start) -> None:
    guest = tiny(Spin())
    guest.vcpu.close()
    guest.vcpu.kick()
    guest.vcpu.close()


def test_kicks_come_quickly(tiny: Start) -> None:
    """Not a benchmark: a lost kick would block for ever."""
    guest = tiny(Spin())
    done = threading.Event()

    def run() -> None:
        guest.vcpu.run()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.01)
    guest.vcpu.kick()
    assert done.wait(5)
    thread.join()
