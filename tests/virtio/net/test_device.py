"""The network device's features, configuration and control queue."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.recorded import Recorded
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BASE, BUFFERS, Buffer, Memory, SplitDriver
from tests.virtio.vhost.test_device import Recorder
from vmm._native import lib
from vmm.errors import KernelError
from vmm.virtio import status
from vmm.virtio.device import F_VERSION_1, RING_FEATURES
from vmm.virtio.net import registers
from vmm.virtio.net.device import Net
from vmm.virtio.net.registers import Address
from vmm.virtio.net.tap import Tap
from vmm.virtio.queue import Areas, MemoryMap
from vmm.virtio.transport.mmio import MmioTransport

MAC = bytes.fromhex("525400aabbcc")
PAIRS = 3
OK, ERR = b"\0", b"\1"
MQ, SET_PAIRS = 4, 0
OFFLOADS, SET_OFFLOADS = 5, 0
CONTROL = registers.F_CTRL_VQ | registers.F_CTRL_GUEST_OFFLOADS | registers.F_MQ
ALL = RING_FEATURES | F_VERSION_1 | registers.PACKETS


class FakeTap(Tap):
    """Record the calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.fails = False

    def set_pairs(self, pairs: int) -> None:
        self.told.append(("pairs", pairs))
        if self.fails:
            raise KernelError("--net tap: TUNSETQUEUE", 22)

    def set_offload(self, flags: int) -> None:
        self.told.append(("offload", flags))

    def close(self) -> None:
        self.told.append(("close", 0))


class Card:
    """A device with a TAP, its control queue and a driver."""

    def __init__(self, memory: Memory, events: Recorded, pairs: int = PAIRS) -> None:
        self.memory = memory
        self.tap = FakeTap()
        self.backend = Recorder(features=ALL)
        self.device = Net(
            "net0",
            MemoryMap(memory.guest),
            events,
            Address(MAC, mtu=9000, pairs=pairs),
            backend=self.backend,
            tap=self.tap,
        )
        self.driver = MmioDriver(MmioTransport(self.device))

    def start(self, features: int = ALL & ~RING_FEATURES | CONTROL) -> None:
        """Bring it up: each queue with a ring, the control queue where the driver expects it."""
        self.memory.guest.write(BASE, bytes(0x4_0000))
        self.driver.negotiate(features)
        pairs = PAIRS if features & registers.F_MQ else 1
        for index in range(2 * pairs + 1):
            at = BASE + 0x1000 * index
            assert self.driver.set_queue(index, 8, Areas(at, at + 0x400, at + 0x800))
        self.control = 2 * pairs
        self.ring = SplitDriver(self.memory)
        self.ring.areas = Areas(at, at + 0x400, at + 0x800)
        self.driver.add_status(status.DRIVER_OK)

    def command(self, group: int, command: int, data: bytes) -> bytes:
        """Send a command; return its status."""
        self.memory.guest.write(BUFFERS, bytes([group, command]) + data)
        self.memory.guest.write(BUFFERS + 0x100, b"\xff")
        self.ring.add(
            Buffer(BUFFERS, 2),
            *([Buffer(BUFFERS + 2, len(data))] if data else []),
            Buffer(BUFFERS + 0x100, 1, writable=True),
        )
        self.driver.store("QueueNotify", self.control)
        self.device.attend()
        assert [length for _, length in self.ring.used()] == [1]
        return self.memory.guest.read(BUFFERS + 0x100, 1)


@pytest.fixture
def card(memory: Memory, events: Recorded) -> Iterator[Card]:
    card = Card(memory, events)
    with card.driver.transport:
        yield card


def test_the_configuration_is_the_specs(card: Card) -> None:
    data = b"".join(
        card.driver.transport.read(0x100 + at, 1).to_bytes(1, "little") for at in range(12)
    )
    assert data == MAC + struct.pack("<HHH", 1, PAIRS, 9000)
    assert card.driver.load("DeviceID") == 1


def test_what_is_offered_depends_on_what_there_is(memory: Memory, events: Recorded) -> None:
    always = registers.F_MAC | registers.F_STATUS
    for pairs, more in ((1, 0), (2, registers.F_MQ)):
        card = Card(memory, events, pairs)
        with card.driver.transport:
            expected = (
                ALL
                | always
                | registers.F_MTU
                | registers.F_CTRL_VQ
                | registers.F_CTRL_GUEST_OFFLOADS
                | more
            )
            assert card.driver.offered() == expected
            assert len(card.device.slots) == 2 * pairs + 1
    backend = Recorder(features=RING_FEATURES | F_VERSION_1 | registers.F_MRG_RXBUF)
    known = MemoryMap(memory.guest)
    with MmioTransport(Net("net0", known, events, Address(MAC), backend=backend)) as transport:
        offered = MmioDriver(transport).offered()
        assert offered == backend.can | always
        assert len(transport.device.slots) == 2


def test_the_tap_sends_only_what_the_driver_takes(card: Card) -> None:
    card.start()
    everything = lib.TUN_F_CSUM | lib.TUN_F_TSO4 | lib.TUN_F_TSO6 | lib.TUN_F_TSO_ECN
    assert card.tap.told == [("offload", everything)]
    card.start(CONTROL | registers.F_GUEST_CSUM)
    assert card.tap.told[-1] == ("offload", lib.TUN_F_CSUM)
    card.start(CONTROL | registers.F_GUEST_TSO4)
    assert card.tap.told[-1] == ("offload", 0), "TSO4 needs CSUM (5.1.3.1)"
    card.start(CONTROL | registers.F_GUEST_TSO4 | registers.F_GUEST_ECN)
    assert card.tap.told[-1] == ("offload", 0), "and ECN needs TSO4"


def test_the_back_end_gets_the_pairs_and_not_the_control_queue(card: Card) -> None:
    card.start()
    assert sorted(card.backend.rings) == list(range(2 * PAIRS))


def test_a_driver_without_mq_has_its_control_queue_after_the_first_pair(card: Card) -> None:
    card.start(CONTROL & ~registers.F_MQ)
    assert sorted(card.backend.rings) == [0, 1]
    assert card.control == 2
    assert card.command(OFFLOADS, SET_OFFLOADS, bytes(8)) == OK
    assert card.command(MQ, SET_PAIRS, b"\1\0") == ERR


def test_pairs_are_used_as_the_driver_says_and_one_after_a_reset(card: Card) -> None:
    card.start()
    card.tap.told.clear()
    for pairs in (PAIRS, 2, 1, 3):
        assert card.command(MQ, SET_PAIRS, struct.pack("<H", pairs)) == OK
        assert card.tap.told.pop() == ("pairs", pairs)
    card.driver.store("Status", 0)
    assert card.tap.told == [("pairs", 1)]


def test_the_rings_of_new_pairs_are_looked_at(card: Card) -> None:
    """A thread of ours, which had found its TAP queue detached, waits for the doorbell."""
    card.start()
    for slot in card.device.slots:
        slot.doorbell.drain()
    assert card.command(MQ, SET_PAIRS, b"\2\0") == OK
    rung = []
    for index in range(2 * PAIRS):
        with suppress(BlockingIOError):
            os.eventfd_read(card.device.slots[index].doorbell.fileno())
            rung.append(index)
    assert rung == [2]


@pytest.mark.parametrize(
    ("group", "command", "data"),
    [
        (MQ, SET_PAIRS, b"\0\0"),
        (MQ, SET_PAIRS, struct.pack("<H", PAIRS + 1)),
        (MQ, SET_PAIRS, b"\xff\xff"),
        (MQ, SET_PAIRS, b"\1"),
        (MQ, SET_PAIRS, b""),
        (MQ, SET_PAIRS, b"\1\0\0"),
        (MQ, 1, b"\1\0"),
        (MQ, SET_PAIRS, bytes(1000)),
        (OFFLOADS, SET_OFFLOADS, struct.pack("<Q", 1 << 63)),
        (OFFLOADS, SET_OFFLOADS, struct.pack("<Q", registers.F_HOST_TSO4)),
        (OFFLOADS, SET_OFFLOADS, struct.pack("<Q", registers.F_GUEST_TSO4)),
        (OFFLOADS, SET_OFFLOADS, bytes(7)),
        (0, 0, b"\1"),
        (255, 255, b""),
    ],
)
def test_what_cannot_be_done_is_answered_with_an_error(
    card: Card, group: int, command: int, data: bytes
) -> None:
    card.start()
    card.tap.told.clear()
    assert card.command(group, command, data) == ERR
    assert card.tap.told == []
    assert card.driver.load("Status") == status.LIVE


def test_what_the_host_refuses_is_answered_with_an_error(card: Card) -> None:
    card.start()
    card.tap.fails = True
    assert card.command(MQ, SET_PAIRS, b"\2\0") == ERR
    card.tap.fails = False
    assert card.command(MQ, SET_PAIRS, b"\2\0") == OK


def test_offloads_change_while_it_runs(card: Card) -> None:
    card.start()
    for features, flags in (
        (0, 0),
        (registers.F_GUEST_CSUM, lib.TUN_F_CSUM),
        (registers.F_GUEST_CSUM | registers.F_GUEST_TSO6, lib.TUN_F_CSUM | lib.TUN_F_TSO6),
    ):
        assert card.command(OFFLOADS, SET_OFFLOADS, struct.pack("<Q", features)) == OK
        assert card.tap.told[-1] == ("offload", flags)


def test_a_command_at_a_time_gets_its_turn(card: Card) -> None:
    """Each may attach or detach all queues, and the kernel waits for its own readers then."""
    card.start()
    queue = card.device.slots[card.control].queue
    assert queue is not None
    card.memory.guest.write(BUFFERS, bytes([4, 0]) + struct.pack("<H", 2))
    for _ in range(3):
        card.ring.add(Buffer(BUFFERS, 4), Buffer(BUFFERS + 0x100, 1, writable=True))
    card.device.serve(card.control, queue)
    assert len(card.ring.used()) == 1


@pytest.mark.parametrize("chain", [[Buffer(BUFFERS, 1)], [Buffer(BUFFERS, 2)]])
def test_what_is_no_command_breaks_the_device(
    card: Card, events: Recorded, chain: list[Buffer]
) -> None:
    card.start()
    card.ring.add(*chain)
    card.driver.store("QueueNotify", card.control)
    card.device.attend()
    assert card.driver.load("Status") & status.NEEDS_RESET
    assert events.seen[0][1]["error"] == "a chain is too short for a request"


def test_queues_that_the_driver_cannot_know_of_are_left_alone(card: Card) -> None:
    card.driver.negotiate(CONTROL & ~registers.F_MQ)
    for index in (0, 1, 2, 5, 6):
        at = BASE + 0x1000 * index
        assert card.driver.set_queue(index, 8, Areas(at, at + 0x400, at + 0x800))
    card.driver.add_status(status.DRIVER_OK)
    assert sorted(card.backend.rings) == [0, 1]
    for index in (5, 6):
        ring = SplitDriver(card.memory)
        at = BASE + 0x1000 * index
        ring.areas = Areas(at, at + 0x400, at + 0x800)
        ring.add(Buffer(0, 0))
        card.driver.store("QueueNotify", index)
        card.device.attend()
    assert card.driver.load("Status") == status.LIVE


def test_the_tap_goes_with_the_device(memory: Memory, events: Recorded) -> None:
    card = Card(memory, events)
    card.driver.transport.close()
    assert card.tap.told[-1] == ("close", 0)
    assert card.backend.told[-1] == "close"
