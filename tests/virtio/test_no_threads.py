"""A host that is out of threads: that breaks a device, not the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import OK, Disk, wait
from tests.virtio.fs.fuse_driver import INIT, Client
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.net.net_driver import Wired
from tests.virtio.ring_driver import BASE, Memory, SplitDriver
from tests.virtio.test_pmem import Disk as Durable
from tests.virtio.vhost.fake_daemon import FakeService
from vmm.errors import HostError
from vmm.memory import Mapping
from vmm.virtio import status
from vmm.virtio.block.vhost_user import VhostUserBlk
from vmm.virtio.fs.device import Fs
from vmm.virtio.pmem import Pmem
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport
from vmm.virtio.vhost.daemon import Command, Daemon
from vmm.virtio.vhost.device import VhostDevice


@contextmanager
def no_threads() -> Iterator[None]:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@pytest.fixture
def shared() -> Iterator[Memory]:
    memory = Memory(Mapping.memfd)
    yield memory
    memory.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_broken(driver: MmioDriver, events: Recorded) -> None:
    assert driver.load("Status") & status.NEEDS_RESET
    (error,) = (fields["error"] for name, fields in events.seen if name == "virtio-needs-reset")
    assert "cannot start thread" in str(error)


def begin(driver: MmioDriver, memory: Memory) -> None:
    ring = SplitDriver(memory)
    memory.guest.write(BASE, bytes(0x1_0000))
    driver.start(ring.size, ring.areas, 1 << 28)


@pytest.mark.parametrize("way", ["io_uring"], indirect=True)
def test_a_disk(make: Callable[..., Disk], events: Recorded) -> None:
    disk = make()
    before = open_files()
    with no_threads():
        disk.start()
    assert_broken(disk.driver, events)
    assert open_files() == before
    disk.start()
    assert disk.write(8, b"x" * 512) == OK


def test_persistent_memory(memory: Memory, events: Recorded) -> None:
    with MmioTransport(Pmem("pmem0", MemoryMap(memory.guest), events, Durable())) as transport:
        driver = MmioDriver(transport)
        with no_threads():
            begin(driver, memory)
        assert_broken(driver, events)
        begin(driver, memory)
        assert driver.load("Status") == status.LIVE


def test_a_network(memory: Memory, events: Recorded) -> None:
    with ExitStack() as owned:
        wired = Wired(memory, events)
        owned.callback(wired.close)
        with no_threads():
            wired.start()
        assert_broken(wired.driver, events)
        wired.start()
        assert wired.driver.load("Status") == status.LIVE


@pytest.fixture
def disk(shared: Memory, events: Recorded) -> Iterator[MmioDriver]:
    device = VhostUserBlk("disk0", MemoryMap(shared.guest), events, FakeService())  # type: ignore[arg-type]
    with MmioTransport(device) as transport:
        yield MmioDriver(transport)


def listen(driver: MmioDriver, until: Callable[[], object]) -> None:
    """Do what the loop does until a condition holds."""
    device = driver.transport.device
    assert isinstance(device, VhostDevice)

    def turn() -> object:
        device.attend()
        return until()

    wait(turn)


def hang_up(driver: MmioDriver) -> None:
    driver.transport.device.backend._server.daemons[-1].hang_up()  # type: ignore[attr-defined]


def test_who_follows_the_ring_that_a_daemon_serves(
    disk: MmioDriver, shared: Memory, events: Recorded
) -> None:
    with no_threads():
        begin(disk, shared)
    assert_broken(disk, events)
    begin(disk, shared)
    assert disk.load("Status") == status.LIVE


def test_who_replaces_a_daemon(disk: MmioDriver, shared: Memory, events: Recorded) -> None:
    begin(disk, shared)
    hang_up(disk)
    with no_threads():
        listen(disk, lambda: disk.load("Status") & status.NEEDS_RESET)
    assert_broken(disk, events)
    begin(disk, shared)
    assert disk.load("Status") == status.LIVE


def test_who_replaces_a_directorys_daemon(shared: Memory, events: Recorded) -> None:
    service = FakeService()
    device = Fs("share0", MemoryMap(shared.guest), events, service, "tag")  # type: ignore[arg-type]
    with MmioTransport(device) as transport:
        client = Client(transport, shared)
        client.start()
        hang_up(client.driver)
        listen(client.driver, lambda: "fs-disconnected" in events.names())
        with no_threads():
            client.send(INIT, bytes(64))
            listen(client.driver, lambda: client.driver.load("Status") & status.NEEDS_RESET)
        assert_broken(client.driver, events)


def test_a_daemon(events: Recorded) -> None:
    with no_threads(), pytest.raises(HostError, match=r"cannot start thread sh: .*raise the limit"):
        Daemon(Command(["/bin/sh", "-c", "exit"]), events)
