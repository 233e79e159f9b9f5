"""The console device: ports, control messages, bytes both ways, and who waits for whom."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES
from tests.virtio.mmio_driver import CONFIG, MmioDriver
from tests.virtio.ring_driver import (
    BASE,
    BUFFERS,
    KINDS,
    SECOND,
    Buffer,
    Memory,
    PackedDriver,
    SplitDriver,
)
from vmm._native import lib
from vmm.loop import Loop
from vmm.virtio import status
from vmm.virtio.console.chardev.chardev import Chardev
from vmm.virtio.console.chardev.pipes import PipeChardev
from vmm.virtio.console.device import CONTROL, F_MULTIPORT, F_SIZE, Console
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

READY, ADD, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = 0, 1, 3, 4, 5, 6, 7
"""Events of 5.3.6.2."""

RINGS = BASE + 0x8_0000
PAGE = 0x400
PATIENCE = 10.0


class Driver:
    """A driver of the console, with all queues and buffers for input, and a loop for the host."""

    def __init__(self, memory: Memory, console: Console, loop: Loop, kind: str) -> None:
        self.memory, self.console, self.loop, self.kind = memory, console, loop, kind
        self.mmio = MmioDriver(console.interrupts)  # type: ignore[arg-type]
        self.rings: list[SplitDriver | PackedDriver] = []
        for index, slot in enumerate(console.slots):
            loop.add_reader(
                slot.doorbell.fileno(),
                lambda index=index: console.process(index),  # type: ignore[misc]
            )

    def start(self, features: int = F_MULTIPORT) -> None:
        memory = self.memory
        memory.guest.write(RINGS, bytes(0x8_0000))
        self.rings = [
            KINDS[self.kind](memory, at=RINGS + 0x1_0000 * n)
            for n in range(len(self.console.slots))
        ]
        form = FORMAT_FEATURES[self.rings[0].form]
        assert self.mmio.negotiate(form | features) & status.FEATURES_OK
        for index, ring in enumerate(self.rings):
            assert self.mmio.set_queue(index, ring.size, ring.areas)
        self.mmio.add_status(status.DRIVER_OK)
        self.posted: dict[tuple[int, int], int] = {}

    def post(self, queue: int, size: int = PAGE) -> None:
        """Give the device a buffer to write to."""
        at = BUFFERS + PAGE * len(self.posted)
        self.posted[queue, self.rings[queue].add(Buffer(at, size, writable=True))] = at
        self.mmio.store("QueueNotify", queue)

    def received(self, queue: int) -> list[bytes]:
        """Return what the device wrote since the last call."""
        found = []
        for identity, length in self.rings[queue].used():
            found.append(self.memory.guest.read(self.posted[queue, identity], length))
        return found

    def send(self, queue: int, data: bytes) -> int:
        at = SECOND
        self.memory.guest.write(at, data)
        identity = self.rings[queue].add(Buffer(at, len(data)))
        self.mmio.store("QueueNotify", queue)
        return identity

    def say(self, port: int, event: int, value: int) -> None:
        self.send(3, CONTROL.pack(port, event, value))
        self.turn(self.rings[3].used)

    def heard(self) -> list[tuple[int, int, int, bytes]]:
        """Return control messages of the device."""
        return [(*CONTROL.unpack(text[:8]), text[8:]) for text in self.received(2)]

    def listen(self, messages: int) -> list[tuple[int, int, int, bytes]]:
        """Return *messages* control messages of the device."""
        found: list[tuple[int, int, int, bytes]] = []

        def enough() -> bool:
            found.extend(self.heard())
            return len(found) >= messages

        self.turn(enough)
        return found

    def receive(self, queue: int) -> list[bytes]:
        """Wait until the device writes something; return that."""
        found: list[bytes] = []

        def any_yet() -> bool:
            found.extend(self.received(queue))
            return bool(found)

        self.turn(any_yet)
        return found

    def turn(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        self.loop.call_later(PATIENCE, lambda: None)
        met: list[object] = []

        def done() -> bool:
            met[:] = [until()]
            return bool(met[0]) or time.monotonic() > deadline

        self.loop.run(until=done)
        assert met[0]

    def step(self) -> None:
        """Let the host do what is waiting."""
        done: list[int] = []
        self.loop.call_soon_threadsafe(lambda: done.append(1))
        self.turn(lambda: done)

    def settle(self) -> None:
        """Let the host do what it can do now."""
        done: list[int] = []
        self.loop.call_later(0.02, lambda: done.append(1))
        self.turn(lambda: done)

    def open(self, port: int) -> None:
        """Set the device up, and open *port*, as Linux does."""
        for _ in range(6):
            self.post(2)
        self.say(0, READY, 1)
        self.listen(len(self.console.ports))
        self.say(port, PORT_READY, 1)
        self.say(port, OPEN, 1)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


@pytest.fixture
def end(loop: Loop) -> Iterator[PipeChardev]:
    with PipeChardev(loop) as end:
        yield end


@pytest.fixture
def make(memory: Memory, events: Recorded, loop: Loop) -> Iterator[Callable[..., Driver]]:
    made: list[MmioTransport] = []

    def build(*ends: tuple[Chardev, str], kind: str = "split") -> Driver:
        console = Console("console", MemoryMap(memory.guest), events, ends)
        made.append(MmioTransport(console))
        return Driver(memory, console, loop, kind)

    yield build
    for transport in made:
        for slot in transport.device.slots:
            loop.remove_reader(slot.doorbell.fileno())
        transport.close()


# --- configuration and control ------------------------------------------------------------------


def test_consoles_come_first_and_named_ports_after(make: Callable[..., Driver], loop: Loop) -> None:
    """Port 0 is a console or does not exist."""
    ends = [PipeChardev(loop) for _ in range(3)]
    driver = make((ends[0], "agent"), (ends[1], ""), (ends[2], ""))
    assert [(n, port.name) for n, port in driver.console.ports.items()] == [
        (0, ""),
        (1, ""),
        (2, "agent"),
    ]
    assert driver.mmio.transport.read(0x104, 4) == 3
    assert len(driver.console.slots) == 8
    alone = make((PipeChardev(loop), "agent"))
    assert list(alone.console.ports) == [1]
    assert len(alone.console.slots) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_driver_is_told_of_ports_as_it_asks(
    make: Callable[..., Driver], loop: Loop, end: PipeChardev, kind: str
) -> None:
    end.size = 132, 43
    silent = Chardev(loop)
    driver = make((end, ""), (silent, "agent"), kind=kind)
    driver.start(F_MULTIPORT | F_SIZE)
    for _ in range(6):
        driver.post(2)
    driver.say(0, READY, 1)
    assert driver.listen(2) == [(0, ADD, 1, b""), (1, ADD, 1, b"")]
    driver.say(0, PORT_READY, 1)
    assert driver.listen(3) == [
        (0, CONSOLE, 1, b""),
        (0, RESIZE, 0, struct.pack("<HH", 132, 43)),
        (0, OPEN, 1, b""),
    ]
    driver.say(1, PORT_READY, 1)
    assert driver.listen(1) == [(1, NAME, 1, b"agent")], "and nobody is there"


def test_messages_wait_for_buffers(make: Callable[..., Driver], end: PipeChardev) -> None:
    driver = make((end, ""))
    driver.start()
    driver.say(0, READY, 1)
    driver.say(0, PORT_READY, 1)
    driver.settle()
    assert driver.heard() == []
    for _ in range(3):
        driver.post(2)
    assert [event for _, event, _, _ in driver.listen(3)] == [ADD, CONSOLE, OPEN]


def test_no_driver_makes_messages_pile_up(make: Callable[..., Driver], end: PipeChardev) -> None:
    driver = make((end, ""))
    driver.start()
    for _ in range(200):
        driver.say(0, READY, 1)
        driver.say(0, PORT_READY, 1)
    assert len(driver.console._outbox) == 3


def test_nonsense_is_an_event(
    make: Callable[..., Driver], end: PipeChardev, events: Recorded
) -> None:
    driver = make((end, ""))
    driver.start()
    for message in ((0, 99, 1), (7, OPEN, 1), (0, READY, 0), (0, PORT_READY, 0)):
        driver.say(*message)
    assert events.names() == ["virtio-console-control"] * 4
    assert not driver.mmio.load("Status") & status.NEEDS_RESET


@pytest.mark.parametrize("queue", [2, 3])
def test_a_message_with_too_little_room_needs_a_reset(
    make: Callable[..., Driver], end: PipeChardev, events: Recorded, queue: int
) -> None:
    driver = make((end, ""))
    driver.start()
    if queue == 2:
        driver.post(2, 7)
        driver.say(0, READY, 1)
    else:
        driver.send(3, bytes(7))
    driver.turn(lambda: driver.mmio.load("Status") & status.NEEDS_RESET)
    assert events.names() == ["virtio-needs-reset"]


def test_a_new_size_is_told(make: Callable[..., Driver], end: PipeChardev) -> None:
    end.size = 80, 24
    driver = make((end, ""))
    driver.start(F_MULTIPORT | F_SIZE)
    driver.open(0)
    driver.listen(3)
    end.resize(100, 30)
    assert driver.listen(1) == [(0, RESIZE, 0, struct.pack("<HH", 100, 30))]
    assert driver.mmio.transport.read(0x100, 4) == 100 | 30 << 16


def test_without_ports_a_new_size_is_a_change_of_configuration(
    make: Callable[..., Driver], end: PipeChardev
) -> None:
    end.size = 80, 24
    driver = make((end, ""))
    driver.start(F_SIZE)
    end.resize(100, 30)
    assert driver.mmio.load("InterruptStatus") & CONFIG
    assert driver.mmio.transport.read(0x100, 4) == 100 | 30 << 16


def test_an_emergency_needs_no_queues(make: Callable[..., Driver], end: PipeChardev) -> None:
    driver = make((end, ""))
    for byte in b"oops":
        driver.mmio.transport.write(0x108, 4, byte)
    driver.settle()
    assert end.drain(10) == b"oops"


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_pass_both_ways(make: Callable[..., Driver], end: PipeChardev, kind: str) -> None:
    driver = make((end, ""), kind=kind)
    driver.start()
    driver.open(0)
    for text in (b"one", b"two" * 100):
        driver.send(1, text)
        driver.turn(driver.rings[1].used)
        assert end.drain(1 << 16) == text
        driver.post(0)
        assert end.receive(text) == len(text)
        assert driver.receive(0) == [text]


def test_a_driver_that_knows_no_ports_has_one_console(
    make: Callable[..., Driver], end: PipeChardev
) -> None:
    driver = make((end, ""))
    driver.start(0)
    driver.send(1, b"out")
    driver.turn(driver.rings[1].used)
    assert end.drain(10) == b"out"
    driver.post(0)
    end.receive(b"in")
    assert driver.receive(0) == [b"in"]


def test_nothing_comes_before_the_guest_opens_its_end(
    make: Callable[..., Driver], end: PipeChardev
) -> None:
    driver = make((end, "agent"))
    driver.start()
    driver.post(4)
    end.receive(b"early")
    driver.settle()
    assert driver.received(4) == []
    driver.open(1)
    assert driver.receive(4) == [b"early"]


def test_a_reader_that_is_slow_loses_nothing(make: Callable[..., Driver], end: PipeChardev) -> None:
    """Its pipe is full most of the time; the guest waits."""
    driver = make((end, "agent"))
    driver.start()
    driver.open(1)
    data = os.urandom(1 << 20)
    sent, read = 0, bytearray()
    while len(read) < len(data):
        driver.rings[5].used()
        if not driver.rings[5].chains and sent < len(data):
            driver.send(5, data[sent : sent + (1 << 15)])
            sent += 1 << 15
        else:
            read += end.drain(10_000)
        driver.step()
    assert read == data


def test_input_waits_for_buffers_and_loses_nothing(
    make: Callable[..., Driver], end: PipeChardev
) -> None:
    driver = make((end, ""))
    driver.start()
    driver.open(0)
    data = os.urandom(1 << 17)
    given, got = 0, bytearray()
    while len(got) < len(data):
        given += end.receive(data[given : given + 5000])
        if not driver.rings[0].chains:
            driver.posted.clear()
            driver.post(0, 1000)
        driver.step()
        for text in driver.received(0):
            got += text
    assert got == data


def test_a_guest_that_waits_for_its_reader_costs_nothing(
    make: Callable[..., Driver], end: PipeChardev
) -> None:
    """No thread spins."""
    driver = make((end, ""))
    driver.start()
    driver.open(0)
    with suppress(BlockingIOError):
        while os.write(end.output_fd, bytes(4096)):
            pass
    for _ in range(4):
        driver.send(1, bytes(5000))
    driver.post(0)
    driver.settle()
    rounds: list[int] = []
    done: list[int] = []
    driver.loop.call_later(0.2, lambda: done.append(1))
    driver.loop.run(until=lambda: rounds.append(1) or bool(done))  # type: ignore[func-returns-value]
    assert len(rounds) < 20
    assert driver.rings[1].used() == []


def test_what_is_sent_while_nobody_is_there_is_dropped(
    make: Callable[..., Driver], loop: Loop
) -> None:
    driver = make((Chardev(loop), ""))
    driver.start()
    driver.open(0)
    driver.send(1, b"lost")
    driver.turn(driver.rings[1].used)


def test_who_hangs_up_and_comes_back_is_told_of(
    make: Callable[..., Driver], loop: Loop, events: Recorded
) -> None:
    """In the middle of a chain, whose rest is dropped."""
    chardev = Chardev(loop)
    driver = make((chardev, "agent"))
    driver.start()
    driver.open(1)
    driver.listen(1)
    for _ in range(2):
        ours, theirs = os.pipe2(os.O_NONBLOCK)
        chardev.output_fd = theirs
        chardev.on_change(None)
        assert driver.listen(1) == [(1, OPEN, 1, b"")]
        with suppress(BlockingIOError):
            while os.write(theirs, bytes(4096)):
                pass
        driver.send(5, bytes(9000))
        driver.settle()
        assert driver.rings[5].used() == []
        os.close(ours)
        driver.turn(driver.rings[5].used)
        assert driver.listen(1) == [(1, OPEN, 0, b"")]
        driver.post(2)
        driver.post(2)
    assert events.names() == ["console-connected", "console-disconnected"] * 2
    assert events.seen[1][1]["error"] == "Broken pipe"


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_forgets_chains_and_conversations(
    make: Callable[..., Driver], end: PipeChardev, kind: str
) -> None:
    driver = make((end, ""), kind=kind)
    for _ in range(3):
        driver.start()
        driver.open(0)
        driver.post(0)
        driver.settle()
        driver.send(1, b"whole")
        driver.turn(driver.rings[1].used)
        assert end.drain(10) == b"whole"
        driver.mmio.store("Status", 0)
        end.receive(b"x")
        driver.settle()
        assert driver.received(0) == []
        assert os.read(end.input_fd, 10) == b"x"


def test_a_port_that_is_not_there_takes_bytes_to_nowhere(
    make: Callable[..., Driver], end: PipeChardev
) -> None:
    driver = make((end, "agent"))
    driver.start()
    driver.post(0)
    driver.send(1, b"nobody")
    driver.turn(driver.rings[1].used)
    assert end.drain(10) == b""


def test_the_device_is_a_console(make: Callable[..., Driver], end: PipeChardev) -> None:
    driver = make((end, ""))
    assert driver.mmio.load("DeviceID") == 3
    assert driver.mmio.offered() & F_MULTIPORT
    assert not driver.mmio.offered() & F_SIZE
    assert lib.VIRTIO_CONSOLE_PORT_NAME == NAME


@pytest.mark.parametrize("queue", [0, 1])
def test_memory_that_has_gone_is_the_rings_fault_and_not_the_terminals(
    make: Callable[..., Driver], end: PipeChardev, memory: Memory, events: Recorded, queue: int
) -> None:
    """As with a --pmem file that was cut short: system calls fail with EFAULT."""
    driver = make((end, ""))
    driver.start()
    driver.open(0)
    with memory_gone(memory, SECOND):
        if queue:
            driver.rings[1].add(Buffer(SECOND, 10))
        else:
            driver.rings[0].add(Buffer(SECOND, 10, writable=True))
            assert end.receive(b"input") == 5
        driver.mmio.store("QueueNotify", queue)
        driver.turn(lambda: driver.mmio.load("Status") & status.NEEDS_RESET)
    assert events.names()[-1] == "virtio-needs-reset"
    assert end.connected
    driver.start()
    driver.open(0)
    driver.send(1, b"hello")
    driver.turn(lambda: end.drain(10) == b"hello")


@contextmanager
def memory_gone(memory: Memory, address: int) -> Iterator[None]:
    """Forbid access to the page at *address*."""
    libc = ctypes.CDLL(None, use_errno=True)
    (region,) = (each for each in memory.guest if each.base <= address < each.base + each.size)
    place = ctypes.c_void_p(region.host_address + address - region.base)
    assert libc.mprotect(place, 4096, 0) == 0
    try:
        yield
    finally:
        assert libc.mprotect(place, 4096, 3) == 0
