"""Guest memory for drivers, and a device for them to drive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.virtio.block.blk_driver import SECTORS, Disk
from tests.virtio.mmio_driver import Echo, MmioDriver
from tests.virtio.ring_driver import Memory
from vmm.virtio.block.device import Blk
from vmm.virtio.block.raw_image import WRITE_BACK, CacheMode, RawDisk
from vmm.virtio.queue import MemoryMap
from vmm.virtio.transport.mmio import MmioTransport


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    assert not memory.unnoted(), "live migration would lose what a device wrote"
    memory.close()


@pytest.fixture
def events() -> Recorded:
    return Recorded()


@pytest.fixture
def echo(memory: Memory, events: Recorded) -> Iterator[Echo]:
    with Echo(memory, events) as echo:
        yield echo


@pytest.fixture
def driver(echo: Echo) -> Iterator[MmioDriver]:
    with MmioTransport(echo) as transport:
        yield MmioDriver(transport)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([sector]) * 512 for sector in range(SECTORS)))
    return path


@pytest.fixture(params=["io_uring", "one by one", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    """How the disk's thread does requests."""
    return str(request.param)


@pytest.fixture
def make(memory: Memory, events: Recorded, path: Path, way: str) -> Iterator[Callable[..., Disk]]:
    made: list[MmioTransport] = []

    def make(
        *,
        read_only: bool = False,
        queues: int = 1,
        serial: str = "",
        cache: CacheMode = WRITE_BACK,
        guessed: bool = False,
    ) -> Disk:
        if way == "direct":
            cache = cache._replace(direct=True)
        backing = RawDisk(path, read_only=read_only, option=f"--disk {path}", cache=cache)
        known = MemoryMap(memory.guest)
        device = Blk("disk0", known, events, backing, queues=queues, serial=serial, guessed=guessed)
        device.disk.one_by_one = way == "one by one"
        made.append(MmioTransport(device))
        return Disk(made[-1], memory, path)

    yield make
    for transport in made:
        transport.close()
