"""The entropy device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES
from tests.virtio.mmio_driver import MmioDriver
from tests.virtio.ring_driver import BUFFERS, KINDS, SECOND, Buffer, Memory
from vmm.virtio.queue import MemoryMap
from vmm.virtio.rng import MOST, Rng
from vmm.virtio.transport.mmio import MmioTransport


@pytest.fixture
def rng(memory: Memory, events: Recorded) -> Iterator[MmioDriver]:
    with MmioTransport(Rng("rng", MemoryMap(memory.guest), events)) as transport:
        yield MmioDriver(transport)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_filled(rng: MmioDriver, memory: Memory, kind: str) -> None:
    ring = KINDS[kind](memory)
    assert rng.load("DeviceID") == 4
    rng.start(ring.size, ring.areas, FORMAT_FEATURES[ring.form])
    identity = ring.add(
        Buffer(BUFFERS, 32, writable=True), Buffer(SECOND, 100, writable=True), indirect=True
    )
    rng.notify()
    assert ring.used() == [(identity, 132)]
    one, other = memory.guest.read(BUFFERS, 32), memory.guest.read(SECOND, 100)
    assert len(set(one + other)) > 60
    assert memory.guest.read(BUFFERS + 32, 8) == memory.guest.read(SECOND + 100, 8) == bytes(8)


def test_a_large_request_gets_less_than_it_asks_for(rng: MmioDriver, memory: Memory) -> None:
    ring = KINDS["split"](memory)
    rng.start(ring.size, ring.areas)
    identity = ring.add(Buffer(BUFFERS, 2 * MOST, writable=True))
    rng.notify()
    assert ring.used() == [(identity, MOST)]
    assert memory.guest.read(BUFFERS + MOST, MOST) == bytes(MOST)


def test_a_request_for_nothing_gets_nothing(rng: MmioDriver, memory: Memory) -> None:
    """5.4.6.1: drivers must not make what the device only may read; no reason to stop."""
    ring = KINDS["split"](memory)
    rng.start(ring.size, ring.areas)
    identity = ring.add(Buffer(BUFFERS, 8))
    rng.notify()
    assert ring.used() == [(identity, 0)]
