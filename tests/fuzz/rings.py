"""Targets: virtio's rings, chains and requests, each with a model of what may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.given import Given
from tests.fuzz.target import Target, by_choices, by_property
from tests.recorded import Recorded
from tests.virtio import (
    test_hostile,
    test_hostile_chains,
    test_hostile_devices,
    test_hostile_rings,
)
from tests.virtio.block.hostile_disk import WAYS
from tests.virtio.block.hostile_disk import Hostile as HostileDisk
from tests.virtio.mmio_driver import Echo
from tests.virtio.net.test_hostile_net import Net
from tests.virtio.ring_driver import KINDS, Memory
from tests.virtio.test_hostile_devices import Attack, Host
from tests.virtio.transport import test_hostile_pci
from tests.virtio.vhost.test_hostile_inflight import Hostile as Inflight
from vmm.virtio.transport.mmio import MmioTransport

LIVES = 8
"""How often a device is reset in one case, at most: a case ends with its input."""
REQUESTS = 24
PACKETS = 8


def queue(given: Given) -> None:
    """Attack queues whose chains are served at once, or kept back."""
    memory, events = Memory(), Recorded()
    kind = given.choice((test_hostile.Late, Echo))
    try:
        test_hostile.attack(given, kind(memory, events), memory, events, LIVES)
        test_hostile.still_works(memory)
    finally:
        memory.close()


def ring(given: Given) -> None:
    """Let both sides of a ring do what they do, against the specification's model."""
    world = test_hostile_rings.World(given)
    try:
        world.run()
    finally:
        world.close()


def chain(given: Given) -> None:
    """Copy to a chain and from it: its own bytes change, and no others."""
    world = test_hostile_chains.World(given)
    try:
        sent, room = world.sent, sum(world.writable)
        offset, size = world.size(len(sent)), world.size(len(sent))
        assert world.chain.read(size, offset) == sent[offset : offset + size]
        offset, data = world.size(room), given.randbytes(world.size(room))
        done = world.chain.write(data, offset)
        assert done == world.must_write(data, offset)
        assert world.memory.view.tobytes() == world.must
    finally:
        world.close()


def disk_rings(given: Given) -> None:
    """Scribble over a disk's rings while its thread reads them."""
    test_hostile.attack_disk(given, LIVES)


def disk(given: Given) -> None:
    """Send requests of all types, with payloads; compare the file and all of memory."""
    with TemporaryDirectory() as directory:
        made = HostileDisk(given, Path(directory, "disk.img"), given.choice(WAYS))
        try:
            for _ in range(REQUESTS):
                if given.more:
                    made.do()
        finally:
            made.end()


def network(given: Given, do: Callable[[Net], None], wire: str) -> None:
    """Move packets over *wire*: they go where they should, as they are, or not at all."""
    made = Net(given, wire, given.choice(tuple(KINDS)))
    try:
        for _ in range(PACKETS):
            if given.more:
                do(made)
    finally:
        made.end()


def receive(made: Net) -> None:
    made.receive()
    made.start()


def net(name: str, do: Callable[[Net], None], wire: str, what: str) -> Target:
    return by_choices(name, what, lambda given: network(given, do, wire))


def inflight(given: Given) -> None:
    """Both sides of a daemon's ring write it, and the daemon dies."""
    made = Inflight(given)
    try:
        for _ in range(given.choice((10, 30, 60))):
            made.write()
            if given.random() < 0.7:
                made.look()
        made.requeue()
    finally:
        made.ringed.close()


def device(kind: str, given: Given) -> None:
    """Scribble over all queues of a device, and its registers, between resets."""
    memory = Memory()
    host = Host(memory, given)
    with (
        host.owned,
        MmioTransport(test_hostile_devices.KINDS[kind](host)) as transport,
    ):
        war = Attack(kind, host, memory, transport.device)
        try:
            for _ in range(LIVES):
                if given.more:
                    war.round()
        finally:
            transport.reset()
            host.act = lambda: None
            host.step()
        assert transport.device.status == 0
    test_hostile.still_works(memory)
    memory.close()


def of_kind(kind: str) -> Target:
    what = f"a driver of {kind}; at worst the device needs a reset, and then works"
    return by_choices(f"virtio-{kind}", what, lambda given: device(kind, given))


SENT = "a packet goes out as it is or not at all; memory stays"
RECEIVED = "a packet is where there is room, and nowhere else"
TARGETS = (
    by_choices("queue", "scribbled rings; one event at most, and memory still works", queue),
    by_choices("ring", "split and packed rings; each result is the model's", ring),
    by_choices("chain", "copies; no byte outside the chain changes", chain),
    by_choices(
        "disk-rings", "rings that change while they are read; the file keeps its size", disk_rings
    ),
    by_choices("disk", "OUT, DISCARD, WRITE_ZEROES and all; file and memory are the model's", disk),
    net("net-send", Net.send, "tap", SENT),
    net("net-receive", receive, "tap", RECEIVED),
    net("stream-send", Net.send, "stream", f"passt's frames: {SENT}"),
    net("stream-receive", receive, "stream", f"passt's frames: {RECEIVED}"),
    by_choices(
        "inflight", "a daemon's rings; what is outstanding is known or known not to be", inflight
    ),
    *map(of_kind, test_hostile_devices.KINDS),
    by_property(
        "mmio",
        "a device's registers; a correct driver works afterwards",
        test_hostile.test_no_order_of_accesses_hurts_the_transport,
    ),
    by_property(
        "virtio-pci",
        "configuration space and BAR; a correct driver works afterwards",
        test_hostile_pci.test_no_order_of_accesses_hurts_the_transport,
    ),
)
