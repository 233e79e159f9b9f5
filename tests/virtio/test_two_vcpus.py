"""Registers that one vCPU writes while another is in them: each access sees one value of each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from threading import Thread

import pytest

from tests.recorded import Recorded
from tests.virtio.mmio_driver import REGISTERS, Echo, MmioDriver
from tests.virtio.pci_driver import FIELDS, PciDriver
from tests.virtio.ring_driver import BASE, Memory, SplitDriver
from vmm.virtio import device as virtio
from vmm.virtio.device import QueueSlot
from vmm.virtio.queue import Queue
from vmm.virtio.transport.registers import CommonRegisters

GOOD, BAD = 0, 0xFFFF
"""A queue that exists, and one that does not."""

Torn = Callable[[type, str, int, int], None]


@pytest.fixture
def torn(monkeypatch: pytest.MonkeyPatch) -> Torn:
    """Make an attribute change each time it is read, as if another vCPU wrote it."""

    def tear(where: type, name: str, first: int, second: int) -> None:
        values = cycle((first, second))

        def look(_self: object) -> int:
            return next(values)

        def write(_self: object, _value: int) -> None:
            """Ignore the store."""

        monkeypatch.setattr(where, name, property(look, write), raising=False)

    return tear


@pytest.mark.parametrize("first", [GOOD, BAD])
def test_a_queue_selected_meanwhile_is_no_error_over_mmio(
    driver: MmioDriver, torn: Torn, first: int
) -> None:
    driver.negotiate(virtio.F_RING_RESET)
    for register in set(REGISTERS) - {"Status", "Config"}:
        torn(CommonRegisters, "selected", first, BAD - first)
        driver.load(register)
        torn(CommonRegisters, "selected", first, BAD - first)
        driver.store(register, 1)


@pytest.mark.parametrize("first", [GOOD, BAD])
def test_a_queue_selected_meanwhile_is_no_error_over_pci(
    memory: Memory, events: Recorded, torn: Torn, first: int
) -> None:
    driver = PciDriver(Echo(memory, events))
    driver.negotiate(virtio.F_RING_RESET)
    for register in set(FIELDS) - {"device_status"}:
        torn(CommonRegisters, "selected", first, BAD - first)
        driver.load(register)
        torn(CommonRegisters, "selected", first, BAD - first)
        driver.store(register, 1)
    driver.transport.close()


def test_a_size_written_meanwhile_is_not_beyond_the_maximum(
    driver: MmioDriver, echo: Echo, memory: Memory, torn: Torn
) -> None:
    ring = SplitDriver(memory, at=BASE)
    driver.negotiate()
    driver.set_queue(1, 1024, ring.areas)
    assert echo.slots[1].queue is None, "it has 16"
    driver.negotiate()
    torn(QueueSlot, "size", 8, 1024)
    driver.set_queue(1, 8, ring.areas)
    queue = echo.slots[1].queue
    assert queue is not None
    assert queue.size == 8


class Meeting:
    """Let another vCPU run right after somebody has read whether a queue is ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slot: QueueSlot) -> None:
        self._others: list[Thread] = []
        self._due: list[Callable[[], None]] = []
        self._found = slot.queue
        meeting = self

        def look(_slot: QueueSlot) -> Queue | None:
            found = meeting._found
            while meeting._due:
                other = Thread(target=meeting._due.pop())
                meeting._others.append(other)
                other.start()
                other.join(0.2)  # it may have to wait for us
            return found

        def write(_slot: QueueSlot, queue: Queue | None) -> None:
            meeting._found = queue

        monkeypatch.setattr(QueueSlot, "queue", property(look, write), raising=False)

    def arrange(self, other: Callable[[], None]) -> None:
        self._due.append(other)

    def end(self) -> None:
        for each in self._others:
            each.join()


def check_is_what_registers_say(slot: QueueSlot) -> None:
    queue = slot.queue
    assert queue is not None
    assert queue.size == slot.size
    host, guest = queue.host_areas, slot.areas
    assert host.driver - host.descriptors == guest.driver - guest.descriptors


@pytest.mark.parametrize("register", ["QueueSize", "QueueDescLow"])
def test_a_queue_that_becomes_ready_meanwhile_is_what_its_registers_say(
    driver: MmioDriver,
    echo: Echo,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    register: str,
) -> None:
    """Back ends (vhost) get what the slot has; it has to be what was checked."""
    ring = SplitDriver(memory)
    driver.negotiate()
    driver.store("QueueSel", 1)
    driver.store("QueueSize", 1)
    for name, address in zip(("Desc", "Driver", "Device"), ring.areas, strict=True):
        driver.store(f"Queue{name}Low", address)
    slot = echo.slots[1]
    meeting = Meeting(monkeypatch, slot)
    meeting.arrange(lambda: echo.enable_queue(1))
    driver.store(register, {"QueueSize": 16, "QueueDescLow": BASE + 0x4000}[register])
    meeting.end()
    check_is_what_registers_say(slot)


@pytest.mark.parametrize("register", ["queue_size", "queue_desc_lo"])
def test_a_queue_that_becomes_ready_meanwhile_is_what_its_registers_say_over_pci(
    memory: Memory, events: Recorded, monkeypatch: pytest.MonkeyPatch, register: str
) -> None:
    ring = SplitDriver(memory)
    echo = Echo(memory, events)
    driver = PciDriver(echo)
    driver.negotiate()
    driver.store("queue_size", 1)
    for name, address in zip(("desc", "driver", "device"), ring.areas, strict=True):
        driver.store(f"queue_{name}_lo", address)
    slot = echo.slots[0]
    meeting = Meeting(monkeypatch, slot)
    meeting.arrange(lambda: echo.enable_queue(0))
    driver.store(register, {"queue_size": 8, "queue_desc_lo": BASE + 0x4000}[register])
    meeting.end()
    check_is_what_registers_say(slot)
    driver.transport.close()
