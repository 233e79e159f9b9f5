"""A device whose state goes through JSON serves on, with rings that its driver never reset."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recorded import Recorded
from tests.virtio.driver import FORMAT_FEATURES, echo_once
from tests.virtio.mmio_driver import Echo, MmioDriver
from tests.virtio.ring_driver import BUFFERS, KINDS, Buffer, Memory
from vmm import typed_json
from vmm.errors import HostError
from vmm.virtio import device as virtio
from vmm.virtio.queue import MemoryMap, Queue
from vmm.virtio.state import MmioState, RingState
from vmm.virtio.transport.mmio import MmioTransport


def moved(transport: MmioTransport, memory: Memory, owned: ExitStack) -> MmioTransport:
    """Return another device with the state of *transport*'s, which is closed."""
    transport.device.pause()
    state = transport.state()
    text = json.dumps(typed_json.encode(state))
    decoded = typed_json.decode(MmioState, json.loads(text), "state")
    assert decoded == state
    other = owned.enter_context(MmioTransport(Echo(memory, Recorded())))
    other.restore(decoded)
    other.device.resume()
    for offset in range(0, 0x120, 4):
        if offset != 0x060:  # InterruptStatus: `resume` interrupts
            assert other.read(offset, 4) == transport.read(offset, 4), hex(offset)
    return other


@pytest.mark.parametrize("kind", KINDS)
@given(rounds=st.lists(st.integers(0, 20), min_size=1, max_size=4), event_idx=st.booleans())
def test_rings_go_on_where_they_were(kind: str, rounds: list[int], event_idx: bool) -> None:  # noqa: FBT001
    memory = Memory()
    with ExitStack() as owned:
        owned.callback(memory.close)
        ring = KINDS[kind](memory)
        transport = owned.enter_context(MmioTransport(Echo(memory, Recorded())))
        driver = MmioDriver(transport)
        features = FORMAT_FEATURES[ring.form] | (virtio.F_EVENT_IDX if event_idx else 0)
        if event_idx:
            ring.form = ring.form._replace(event_idx=True)
        driver.start(ring.size, ring.areas, features)
        for count in rounds:
            for _ in range(count):
                echo_once(driver, ring)
            transport = moved(transport, memory, owned)
            driver = MmioDriver(transport)
        echo_once(driver, ring)


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_while_a_device_was_paused_is_served(kind: str) -> None:
    memory = Memory()
    with ExitStack() as owned:
        owned.callback(memory.close)
        ring = KINDS[kind](memory)
        transport = owned.enter_context(MmioTransport(Echo(memory, Recorded())))
        driver = MmioDriver(transport)
        driver.start(ring.size, ring.areas, FORMAT_FEATURES[ring.form])
        transport.device.pause()
        identity = ring.add(Buffer(BUFFERS, 4), Buffer(BUFFERS + 16, 4, writable=True))
        driver.notify()
        assert ring.used() == [], "a paused device does nothing"
        transport = moved(transport, memory, owned)
        assert os.eventfd_read(transport.interrupt.fileno()), "an interrupt may have been lost"
        transport.device.process(0)
        assert ring.used() == [(identity, 4)]
        assert transport.interrupt.status & 1


@pytest.mark.parametrize("kind", KINDS)
@given(before=st.integers(0, 40))
def test_a_chain_that_is_put_back_comes_again(kind: str, before: int) -> None:
    memory = Memory()
    ring = KINDS[kind](memory)
    queue = Queue(MemoryMap(memory.guest), ring.size, ring.areas, ring.form)
    try:
        for _ in range(before):
            ring.add(Buffer(BUFFERS, 4), Buffer(BUFFERS + 8, 4, writable=True))
            chain = queue.pop()
            assert chain is not None
            queue.push(chain.id, 4)
            ring.used()
        state = queue.state()
        identity = ring.add(Buffer(BUFFERS, 4), Buffer(BUFFERS + 8, 4, writable=True))
        chain = queue.pop()
        assert chain is not None
        with pytest.raises(ValueError, match="with the device"):
            queue.state()
        queue.put_back(chain.id)
        assert queue.state() == state
        again = queue.pop()
        assert again is not None
        queue.push(again.id, 4)
        assert ring.used() == [(identity, 4)]
    finally:
        memory.close()


RING = RingState(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("kind", "ring", "wrong"),
    [
        ("split", replace(RING, next_avail=2), "in flight"),
        ("split", RingState(1 << 16, 1 << 16, 1, 1), "not below 65536"),
        ("packed", RingState(1 << 10, 1 << 10, 1, 1), "not below"),
        ("packed", replace(RING, avail_wrap=0), "in flight"),
        ("packed", RingState(1, 1, 2, 2), "wrap counter"),
        ("packed", RingState(-1, -1, 1, 1), "not below"),
    ],
)
def test_a_ring_cannot_be_there(kind: str, ring: RingState, wrong: str) -> None:
    memory = Memory()
    driver = KINDS[kind](memory)
    queue = Queue(MemoryMap(memory.guest), driver.size, driver.areas, driver.form)
    with pytest.raises(ValueError, match=wrong):
        queue.restore(ring)
    memory.close()


def test_another_device_or_one_with_fewer_features_refuses() -> None:
    memory = Memory()
    with ExitStack() as owned:
        owned.callback(memory.close)
        ring = KINDS["split"](memory)
        transport = owned.enter_context(MmioTransport(Echo(memory, Recorded())))
        MmioDriver(transport).start(ring.size, ring.areas)
        transport.device.pause()
        state = transport.device.state()
        other = owned.enter_context(Echo(memory, Recorded()))
        with pytest.raises(HostError, match="the saved device is another"):
            other.restore(replace(state, device_id=2))
        with pytest.raises(HostError, match="features 0x40, which are not offered"):
            other.restore(replace(state, accepted=state.accepted | 1 << 6))
        outside = replace(state.queues[0], descriptors=1 << 60)
        with pytest.raises(HostError, match="beyond guest memory"):
            other.restore(replace(state, queues=(outside, *state.queues[1:])))
