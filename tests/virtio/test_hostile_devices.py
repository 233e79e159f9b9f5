"""Hostile drivers of each kind of device: its rings, the requests in them, its registers.

As in test_hostile.py, hypothesis chooses seeds; here all queues of a device are scribbled over,
with requests that its kind may take for good ones, while the host's side goes on as well.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from random import Random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import AVAIL, BASE, BUFFERS, NEXT, SECOND, SIZE, TABLES, WRITE, Memory
from tests.virtio.test_hostile import FEATURES, Hostile, still_works
from vmm.errors import HostError
from vmm.events import Bounded
from vmm.fd import EventFd
from vmm.loop import Loop
from vmm.memory import GuestMemory
from vmm.virtio import device as virtio
from vmm.virtio import status
from vmm.virtio.balloon import Balloon
from vmm.virtio.console.chardev.chardev import Chardev
from vmm.virtio.console.chardev.pipes import PipeChardev
from vmm.virtio.console.device import Console
from vmm.virtio.device import VirtioDevice
from vmm.virtio.fs.device import Fs
from vmm.virtio.net import registers
from vmm.virtio.net.device import Net
from vmm.virtio.net.registers import Address
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.pmem import Pmem
from vmm.virtio.queue import Areas, MemoryMap
from vmm.virtio.rng import Rng
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost.backend import Ring
from vmm.virtio.vhost.user import UNWANTED
from vmm.virtio.vsock import Vsock

ROUNDS, WITH_THREADS = 40, 8
"""How often a seed brings a device up; the second is for devices that start threads."""

PLACES = [
    Areas(at, at + 0x2000, at + 0x3000) for at in range(BASE + 0x8_0000, BASE + SIZE, 0x1_0000)
]
"""Where rings are: one for each queue."""

CONFIGURATION = 0x100
REGISTERS = (0x30, 0x38, 0x44, 0x44, 0x50, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xC0)


# --- devices ------------------------------------------------------------------------------------


class Disk:
    """What a pmem device makes durable."""

    base, size = 1 << 32, 2 << 20

    def sync(self) -> None:
        time.sleep(0.0002)


class Tap:
    """What a network device asks of its TAP."""

    def set_pairs(self, pairs: int) -> None:
        assert pairs in (1, 2)

    def set_offload(self, flags: int) -> None:
        assert flags >= 0

    def close(self) -> None:
        pass


class Elsewhere:
    """A back end that checks the rings it gets, and does nothing with them."""

    resets_rings = False

    def features(self) -> int:
        return int(virtio.RING_FEATURES | virtio.F_VERSION_1)

    def start(self, features: int, memory: GuestMemory) -> None:
        assert features & virtio.F_VERSION_1
        self.memory = memory

    def start_ring(self, index: int, ring: Ring) -> None:
        assert index < 2
        for area in ring.guest:
            self.memory.view(area, 4).release()

    def stop_ring(self, index: int) -> None:
        pass

    def ring_error(self, index: int) -> str:
        return f"ring {index}"

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class Daemon(Elsewhere):
    """A daemon that dies now and then, and cannot always be started again."""

    def __init__(self, random: Random) -> None:
        self.random = Random(random.getrandbits(32))  # noqa: S311  (for a thread of its own)
        self.before_hang_up: Callable[[int], object] = lambda _fd: None
        self.quiet = EventFd()
        self.rings: dict[int, Ring] = {}
        self.died = False

    def features(self) -> int:
        return int(super().features() & ~UNWANTED)

    @property
    def connection(self) -> int:
        return self.quiet.fileno()

    def start(self, features: int, memory: GuestMemory) -> None:
        if self.died and self.random.random() < 0.5:
            raise HostError("--share: no daemon")
        self.died = False
        super().start(features, memory)

    def start_ring(self, index: int, ring: Ring) -> None:
        super().start_ring(index, ring)
        self.rings[index] = ring

    def stop_ring(self, index: int) -> None:
        self.rings.pop(index, None)

    def cancel_waits(self) -> None:
        pass

    def requeue(self) -> dict[int, int]:
        self.died = True
        return {index: ring.base for index, ring in self.rings.items()}

    def stop(self) -> None:
        self.before_hang_up(self.connection)

    def close(self) -> None:
        self.stop()
        self.quiet.close()


class Host:
    """The machine around a device: its loop, and the other end of its connections."""

    def __init__(self, memory: Memory, random: Random) -> None:
        self.owned = ExitStack()
        self.loop = self.owned.enter_context(Loop())
        self.events = Recorded()
        self.random, self.known = random, MemoryMap(memory.guest)
        self.act: Callable[[], object] = lambda: None

    def step(self) -> None:
        """Do one round of the loop, and something at the other end."""
        self.act()
        done: list[int] = []
        self.loop.call_soon_threadsafe(lambda: done.append(1))
        self.loop.run(until=lambda: bool(done))

    def rng(self) -> VirtioDevice:
        return Rng("rng", self.known, self.events)

    def balloon(self) -> VirtioDevice:
        balloon = Balloon("balloon", self.known, self.events, size=1 << 16)
        self.act = lambda: balloon.ask() if self.random.random() < 0.1 else None
        return balloon

    def pmem(self) -> VirtioDevice:
        return Pmem("pmem0", self.known, self.events, Disk())

    def console(self) -> VirtioDevice:
        pipes, gone = PipeChardev(self.loop), Chardev(self.loop)
        pipes.size = 80, 25

        def act() -> None:
            chosen = self.random.random()
            if chosen < 0.3:
                pipes.receive(os.urandom(100))
            elif chosen < 0.6:
                pipes.drain(1 << 16)
            elif chosen < 0.7:
                pipes.resize(self.random.randrange(300), 50)
            elif chosen < 0.8 and not gone.connected and not gone.leaving:
                gone.output_fd = os.open("/dev/null", os.O_WRONLY)
                gone.on_change(None)
            elif chosen < 0.9:
                gone.hang_up()

        self.act = act
        return Console("console", self.known, self.events, [(pipes, ""), (gone, "agent")])

    def net(self) -> VirtioDevice:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        for each in (end for pair in pairs for end in pair):
            each.settimeout(0)
            self.owned.enter_context(each)

        def act() -> None:
            wire = self.random.choice(pairs)[0]
            with suppress(BlockingIOError):
                wire.send(os.urandom(self.random.randrange(12, 200)))
            with suppress(BlockingIOError):
                wire.recv(1 << 16)

        self.act = act
        files = [theirs.fileno() for _, theirs in pairs]
        backend = ThreadBackend(files, offers=registers.GUEST_OFFLOADS | registers.HOST_OFFLOADS)
        address = Address(bytes(6), 1500, 2)
        return Net("net0", self.known, self.events, address, backend=backend, tap=Tap())  # type: ignore[arg-type]

    def vsock(self) -> VirtioDevice:
        return Vsock("vsock", self.known, self.events, 3, Elsewhere())  # type: ignore[arg-type]

    def share(self) -> VirtioDevice:
        daemon = Daemon(self.random)
        with patch("vmm.virtio.fs.device.VhostUser", lambda _service: daemon):
            fs = Fs("share0", self.known, self.events, None, "tag")  # type: ignore[arg-type]

        def act() -> None:
            for thread in threading.enumerate():
                if thread.name == "share0-adoption":
                    thread.join()
            with fs._lock:
                if fs.live and fs._serving and not fs._own:
                    fs.revive()

        self.act = act
        return fs


KINDS: dict[str, Callable[[Host], VirtioDevice]] = {
    "rng": Host.rng,
    "balloon": Host.balloon,
    "pmem": Host.pmem,
    "console": Host.console,
    "net": Host.net,
    "vsock": Host.vsock,
    "share": Host.share,
}

COMPLAINTS = {
    "virtio-needs-reset",
    "virtio-bad-status",
    "virtio-features-refused",
    "virtio-console-control",
    "console-connected",
    "console-disconnected",
    "balloon-not-ram",
    "balloon-refused",
    "balloon-reached",
    "balloon-stats",
    "fs-disconnected",
    "vhost-failed",
    "vhost-user-restarted",
}


# --- their drivers ------------------------------------------------------------------------------


def message(kind: str, random: Random) -> bytes:
    """Return what a device of that *kind* may take for a request."""
    if kind == "console":
        port, event, value = (
            random.choice((0, 1, 1, 2, 99)),
            random.randrange(9),
            random.randrange(2),
        )
        return struct.pack("<IHH", port, event, value)
    if kind == "balloon":
        pages = (BASE >> 12, (BASE >> 12) + 64, SECOND >> 12, 0, 0xFFFF_FFFF)
        return struct.pack("<4I", *random.choices(pages, k=4))
    if kind == "share":
        code = random.choice((1, 2, 15, 26, 26, 26))  # 26 is FUSE_INIT: a new mount
        return struct.pack("<IIQ", 104, code, random.getrandbits(64)).ljust(64, b"\0")
    if kind == "pmem":
        return struct.pack("<I", random.choice((0, 0, 0, 1)))
    if kind == "net":
        group, command, value = random.randrange(6), random.randrange(3), random.randrange(4)
        return struct.pack("<BBHQ", group, command, value, random.getrandbits(64))
    return random.randbytes(8)


class Attack:
    """Bring *device* up and down with rings of all kinds."""

    def __init__(self, kind: str, host: Host, memory: Memory, device: VirtioDevice) -> None:
        self.kind, self.host, self.memory, self.device = kind, host, memory, device
        self.random = host.random
        self.driver = MmioDriver(device.interrupts)  # type: ignore[arg-type]
        self.found: Counter[str] = Counter()

    def scribble(self, index: int, size: int, packed: int) -> None:
        """Fill a ring: mostly with what looks like requests, else with garbage."""
        random, memory, areas = self.random, self.memory, PLACES[index]
        memory.guest.write(BUFFERS, message(self.kind, random))
        if random.random() < 0.3 or size == 1:
            Hostile(random, memory, areas).scribble(size, packed)
            return
        length = random.choice((4, 8, 8, 14, 16, 64))
        both = ((BUFFERS, length, NEXT), (SECOND, 64, WRITE))
        one = random.choice((((BUFFERS, length, 0),), ((SECOND, 4096, WRITE),)))
        for at, (address, count, flags) in enumerate(random.choice((both, one, one))):
            more = (at, flags | AVAIL) if packed else (flags, at + 1)
            memory.pack(areas.descriptors + 16 * at, "QIHH", address, count, *more)
        if not packed:
            (before,) = memory.unpack(areas.driver + 2, "H")
            memory.pack(areas.driver + 2, f"H{size}H", before + 1 & 0xFFFF, *[0] * size)

    def start(self) -> tuple[int, int, int]:
        """Bring the device up, most of the time; return queues, their size, and whether packed."""
        random, driver, device = self.random, self.driver, self.device
        features = sum(feature for feature in FEATURES if random.random() < 0.6)
        low = device.offered & 0xFFFF_FFFF
        features |= low & random.choice((low, low, random.getrandbits(28)))
        if random.random() < 0.9:
            features &= device.offered
        queues = random.choice((len(device.slots), len(device.slots), 1))
        queues = min(queues, len(PLACES))
        size, packed = random.choice((1, 2, 4, 8)), features & virtio.F_RING_PACKED
        driver.negotiate(features)
        for index in range(queues):
            self.memory.guest.write(PLACES[index].driver, bytes(4))
            self.scribble(index, size, packed)
            driver.set_queue(index, size, PLACES[index])
        driver.add_status(status.DRIVER_OK)
        return queues, size, packed

    def poke(self) -> None:
        """Access a register or the configuration."""
        random, transport = self.random, self.driver.transport
        offset = CONFIGURATION + random.randrange(0x20)
        size = random.choice((1, 2, 4, 4, 8))
        if random.random() < 0.3:
            offset, size = random.choice(REGISTERS), 4
        value = random.choice((0, 1, random.getrandbits(8 * size)))
        if random.random() < 0.5:
            transport.write(offset, size, value & ((1 << 8 * size) - 1))
        assert 0 <= transport.read(offset, size) < 1 << 8 * size

    def ring(self) -> None:
        """Let whoever listens serve the doorbells that were signalled."""
        readers = dict(self.device.readers())
        ready, _, _ = select.select(list(readers), [], [], 0)
        for fd in ready:
            readers[fd]()

    def round(self) -> None:
        """Run the device from one reset to the next."""
        random, events = self.random, self.host.events
        events.seen.clear()
        self.device._bounded = Bounded(events)
        queues, size, packed = self.start()
        for _ in range(random.randrange(1, 6)):
            index = random.randrange(queues)
            self.scribble(index, size, packed)
            self.driver.store("QueueNotify", index)
            self.ring()
            self.host.step()
            if random.random() < 0.3:
                self.poke()
        names = Counter(events.names())
        assert set(names) <= COMPLAINTS
        broken = self.driver.load("Status") & status.NEEDS_RESET
        if broken:
            assert names["virtio-needs-reset"] >= 1
        self.found["broken" if broken else "sound"] += 1
        self.found.update(names)


def attack(kind: str, seed: int) -> Counter[str]:
    """Bring a device of *kind* up `ROUNDS` times; return the events."""
    random = Random(seed)  # noqa: S311  (nobody's secret)
    memory = Memory()
    host = Host(memory, random)
    with host.owned, MmioTransport(KINDS[kind](host)) as transport:
        war = Attack(kind, host, memory, transport.device)
        for _ in range(WITH_THREADS if kind == "net" else ROUNDS):
            war.round()
        transport.reset()
        host.act = lambda: None
        host.step()
        assert transport.device.status == 0
    still_works(memory)
    memory.close()
    return war.found


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, (1 << 64) - 1))
def test_no_driver_hurts_more_than_its_device(kind: str, seed: int) -> None:
    attack(kind, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_some_attacks_break_the_device_and_some_do_not(kind: str) -> None:
    found = sum((attack(kind, seed) for seed in range(6)), Counter[str]())
    assert found["broken"] > 5 or kind == "vsock", found
    assert found["sound"] > 1, found


def test_what_only_one_kind_does_is_among_them() -> None:
    found = sum((attack("console", seed) for seed in range(10)), Counter[str]())
    assert found["virtio-console-control"] > 5
    found = sum((attack("balloon", seed) for seed in range(10)), Counter[str]())
    assert found["balloon-not-ram"] > 5
    found = sum((attack("share", seed) for seed in range(10)), Counter[str]())
    assert found["fs-disconnected"] > 5
    assert found["vhost-failed"] + found["vhost-user-restarted"] > 0, "there were new mounts"


def test_tables_are_where_no_ring_is() -> None:
    assert TABLES < BUFFERS < PLACES[0].descriptors
