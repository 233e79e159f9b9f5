"""BARs in a running VM: memory slots and ioeventfds follow what the guest writes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.kvm.tiny import DEVICE, PAGE, Again, Spin, Store, Tiny
from vmm.bus import MmioBus
from vmm.events import Events
from vmm.kvm.exits import Interrupted, MmioWrite
from vmm.kvm.slots import MemorySlot
from vmm.kvm.vm import Vm
from vmm.machine.bar_ioeventfd import BarIoeventfds
from vmm.memory import Mapping, Region
from vmm.pci.bar import Bar, Space
from vmm.pci.function import Identity, PciFunction
from vmm.pci.host import PciHost
from vmm.pci.window import memory
from vmm.virtio.notify import Ioeventfd

pytestmark = pytest.mark.kvm
Start = Callable[..., Tiny]

COMMAND, BAR, MEMORY_ON = 0x04, 0x10, 2
SLOT = 1 << 15
OFFSET, OTHER = 0x10, 0xE00
SIZE = max(PAGE, 0x1000)


class Counter:
    """A bus device that counts stores."""

    def __init__(self) -> None:
        self.stores = 0

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.stores += 1


class Line:
    def set_level(self, level: bool) -> None:  # noqa: FBT001
        """Nobody listens."""


class Function:
    """A function with one BAR of a page, in a window that begins where tiny guests store."""

    def __init__(self) -> None:
        self.bus, self.counter = MmioBus(), Counter()
        self.bar = Bar(0, SIZE, self.counter, space=Space.MEMORY32)
        window = memory(Space.MEMORY32, DEVICE, 4 * SIZE)
        self.host = PciHost(self.bus, [window], lambda _slot: Line(), Events())
        self.host.attach(PciFunction("test", Identity(1, 2, 3), [self.bar]))

    def place(self, base: int) -> None:
        self.host.write(SLOT + BAR, 4, base)

    def enable(self, *, on: bool) -> None:
        self.host.write(SLOT + COMMAND, 2, MEMORY_ON if on else 0)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def rung(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_doorbells_ring_where_the_bar_is_and_nowhere_else(tiny: Start, eventfd: int) -> None:
    second = 0x1000
    program = [Store(OFFSET, 7, 2), Store(second + OFFSET, 8, 2), Store(OTHER, 9), Again()]
    guest = tiny(*program)
    made = Function()
    running: list[Vm | None] = [guest.vm]
    bells = BarIoeventfds([Ioeventfd(OFFSET, 2, eventfd)], lambda: running[0])
    made.bar.on_map, made.bar.on_unmap = bells.on_map, bells.on_unmap
    at = MmioWrite(DEVICE + OFFSET, 2, 7)
    there = MmioWrite(DEVICE + second + OFFSET, 2, 8)
    mark = MmioWrite(DEVICE + OTHER, 1, 9)

    def round_() -> list[object]:
        exits: list[object] = []
        while not exits or exits[-1] != mark:
            exits.append(guest.vcpu.run())
        return exits[:-1]

    assert (round_(), rung(eventfd)) == ([at, there], 0)
    made.place(DEVICE)
    made.enable(on=True)
    assert (round_(), rung(eventfd)) == ([there], 1)
    if second == SIZE:
        made.place(DEVICE + second)
        assert (round_(), rung(eventfd)) == ([at], 1)
    made.enable(on=False)
    assert (round_(), rung(eventfd)) == ([at, there], 0)
    made.enable(on=True)
    running[0] = None  # the VM goes, and then the machine is reset
    made.host.reset()
    running[0] = guest.vm
    made.place(DEVICE)
    made.host.close()


def test_doorbells_that_kvm_refuses_are_all_taken_back(tiny: Start, eventfd: int) -> None:
    """Another listens at the second address: the BAR works by exits then."""
    guest = tiny(Store(OFFSET, 7, 2), Spin())
    guest.vm.ioeventfd(DEVICE + OFFSET + 4, 2, eventfd)
    made = Function()
    bells = BarIoeventfds(
        [Ioeventfd(OFFSET, 2, eventfd), Ioeventfd(OFFSET + 4, 2, eventfd)], lambda: guest.vm
    )
    made.bar.on_map, made.bar.on_unmap = bells.on_map, bells.on_unmap
    made.place(DEVICE)
    made.enable(on=True)
    assert made.bar.base == DEVICE
    assert guest.vcpu.run() == MmioWrite(DEVICE + OFFSET, 2, 7)
    assert rung(eventfd) == 0


def test_a_slot_toggled_while_a_vcpu_stores_to_it_loses_no_store(tiny: Start) -> None:
    """Each store goes to memory or to the bus, and none faults."""
    guest = tiny(Store(OFFSET, 1), Again())
    made = Function()
    slots: list[MemorySlot] = []
    with Mapping.anonymous(SIZE) as mapping:
        host = Region(DEVICE, mapping.view).host_address

        def on_map(base: int) -> None:
            slots.append(guest.slots.add(base, SIZE, host))

        def on_unmap() -> None:
            guest.slots.remove(slots.pop())

        made.bar.on_map, made.bar.on_unmap = on_map, on_unmap
        failures: list[BaseException] = []

        def vcpu() -> None:
            try:
                while not isinstance(exit_ := guest.vcpu.run(), Interrupted):
                    assert isinstance(exit_, MmioWrite)
                    made.bus.write(*exit_)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        thread = threading.Thread(target=vcpu)
        made.place(DEVICE)
        thread.start()
        hits = rounds = 0
        deadline = time.monotonic() + 60
        while rounds < 500 or (not (hits and made.bus.unclaimed) and time.monotonic() < deadline):
            rounds += 1
            made.enable(on=True)
            mapping.view[OFFSET] = 0
            for _ in range(1000):
                if mapping.view[OFFSET]:
                    hits += 1
                    break
            made.enable(on=False)
            time.sleep(0)  # on a busy machine the vCPU's thread hardly has a turn
        guest.vcpu.kick()
        thread.join()
        assert failures == []
        assert hits > 0, "the guest reached the memory"
        assert made.bus.unclaimed > 0, "and found nobody while it was off"
        assert not slots
        made.host.close()
