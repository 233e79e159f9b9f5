"""Guest memory for drivers, and a device for them to drive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mmio_driver import Echo, MmioDriver, Recorded
from ring_driver import Memory

from vmm.virtio.mmio import MmioTransport


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
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
