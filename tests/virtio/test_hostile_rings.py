"""Hostile rings against a model: each result, each buffer and each byte of memory is compared.

Nothing else changes: not what is outside of a chain's writable buffers, not the used ring beyond
what was returned, nothing at all once the ring is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.guarded import GuardedArray
from tests.virtio.hostile_driver import STEPS, TWO_TO_64, VAST, HostileDriver
from tests.virtio.ring_model import Popped, Wrong
from vmm._native import lib
from vmm.virtio.queue import WRONG, Chain, MemoryMap, Queue, RingError


def must_raise(code: int, do: Callable[[], object]) -> None:
    with pytest.raises(RingError) as caught:
        do()
    assert caught.value.code == code


class World(HostileDriver):
    """The driver, the queue in C, and the checks of one against the other."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.known = MemoryMap(self.guest)
        self.chains = [Chain(self.capacity), Chain(self.capacity)]
        self._arrays: list[GuardedArray] = []
        for chain in self.chains:  # behind the last segment is a guard page
            chain._segments = chain.c.segments = self._array("struct iovec", self.capacity)
            chain._addresses = chain.c.addresses = self._array("uint64_t", self.capacity)
        self.held: list[int] = []
        self.found: Counter[str] = Counter()

    def _array(self, kind: str, count: int) -> object:
        array = GuardedArray(kind, count)
        self._arrays.append(array)
        return array.c

    def close(self) -> None:
        super().close()
        for each in self._arrays:
            each.close()

    def queue(self) -> Queue | None:
        """Return the queue, if the model has one."""
        if self.model.broken:
            must_raise(
                self.model.broken,
                lambda: Queue(self.known, self.size, self.areas, self.form),
            )
            self.found[WRONG[self.model.broken]] += 1
            return None
        queue = Queue(self.known, self.size, self.areas, self.form)
        queue._chain = self.chains[0]
        if not self.form.packed:  # behind the last id is a guard page
            taken = queue.c.taken = self._array("uint16_t", self.size)
            queue._keep = queue._keep[0], taken
            self.begin(queue, self.random.choice((0, 0, 0xFFFC)))
        return queue

    def pop(self, queue: Queue) -> None:
        chain = self.random.choice(self.chains)
        try:
            must = self.model.pop()
        except Wrong as wrong:
            self.found[WRONG[wrong.code]] += 1
            must_raise(wrong.code, lambda: queue.pop(chain))
            return
        if must is None:
            assert queue.pop(chain) is None
            return
        self.found["none"] += 1
        assert queue.pop(chain) is chain
        assert chain.id == must.id
        if must.id in self.offered:
            self.offered.remove(must.id)
        has = [(each.address, each.length, each.writable) for each in chain]
        readable = [(address, length, False) for address, length in must.readable]
        assert has == readable + [(address, length, True) for address, length in must.writable]
        assert chain.readable == sum(length for _, length in must.readable)
        assert chain.writable == sum(length for _, length in must.writable)
        assert queue.c.in_flight == self.model.in_flight
        self.held.append(must.id)
        self.move(chain, must)

    def begin(self, queue: Queue, index: int) -> None:
        """Let a split ring begin where another device stopped."""
        queue.resume(index)
        self.avail = self.model.next_avail = self.model.next_used = index
        self.write(self.areas.driver + 2, index.to_bytes(2, "little"))

    def batch(self, queue: Queue) -> None:
        """Pop up to some chains with notifications off."""
        most = self.random.randrange(3)
        self.model.disable_notify()
        popped = queue.batch(most)
        for _ in range(most):
            try:
                must = self.model.pop()
            except Wrong as wrong:
                must_raise(wrong.code, lambda: next(popped))
                return
            chain = next(popped, None)
            if must is None or chain is None:
                assert must is None
                assert chain is None
                return
            assert chain.id == must.id
            self.held.append(must.id)
        assert next(popped, None) is None

    def put_back(self, queue: Queue) -> None:
        """Pop a chain, and undo that."""
        if self.form.packed or not self.model.has_available() or self.model.broken:
            return
        try:
            must = self.model.pop()
        except Wrong as wrong:
            must_raise(wrong.code, queue.pop)
            return
        chain = queue.pop()
        assert must is not None
        assert chain is not None
        queue.put_back(chain.id)
        del self.model.taken[must.id]
        self.model.next_avail = self.model.next_avail - 1 & 0xFFFF
        assert queue.c.in_flight == self.model.in_flight
        assert queue.next_available == self.model.next_avail

    def move(self, chain: Chain, must: Popped) -> None:
        """Read and write some of the chain's bytes."""
        random = self.random
        if any(address >= VAST for address, _ in must.readable + must.writable):
            return
        offset = random.choice((0, 0, 1, 16, random.randrange(200)))
        size = random.choice((0, 1, 16, random.randrange(300), 1 << 20))
        sent = b"".join(self.image.read(*part) for part in must.readable)
        assert chain.read(size, offset) == sent[offset : offset + size]
        data = random.randbytes(min(size, 4096))
        room = max(0, sum(length for _, length in must.writable) - offset)
        assert chain.write(data, offset) == min(len(data), room)
        at = -offset
        for address, length in must.writable:
            start = max(0, -at)
            part = data[max(0, at) : max(0, at + length)]
            if part:
                self.image.write(address + start, part)
            at += length

    def push(self, queue: Queue) -> None:
        random = self.random
        identity = random.getrandbits(16)
        if self.held and random.random() < 0.95:
            identity = self.held.pop(random.randrange(len(self.held)))
        elif random.random() < 0.7:
            identity %= self.size + 1
        length = random.choice((0, 0, 1, 64, 0xFFFF_FFFF))
        if self.model.push(identity, length):
            queue.push(identity, length)
            if identity in self.held:
                self.held.remove(identity)
        else:
            with pytest.raises(ValueError, match="not with the device"):
                queue.push(identity, length)

    def interrupt(self, queue: Queue) -> None:
        assert queue.should_interrupt() == self.model.should_interrupt()

    def notify(self, queue: Queue) -> None:
        if self.random.random() < 0.5:
            assert queue.enable_notify() == self.model.enable_notify()
        else:
            lib.pyvmm_queue_disable_notify(queue.c)
            self.model.disable_notify()

    def run(self) -> None:
        """Let driver and device do what they do, and go on for a while once the ring is broken."""
        queue = self.queue()
        if queue is None:
            self.check()
            return
        left = STEPS
        device = (
            *[self.pop, self.push] * 3,
            self.interrupt,
            self.notify,
            self.batch,
            self.put_back,
        )
        for _ in range(STEPS):
            for _ in range(self.random.choice((0, 1, 1, 2))):
                self.drive()
            if self.random.random() < 0.3:
                self.suppress()
            self.random.choice(device)(queue)
            self.check()
            left = min(left - 1, 8) if self.model.broken else left - 1
            if not left:
                break


@contextmanager
def world(seed: int) -> Iterator[World]:
    made = World(Random(seed))  # noqa: S311  (nobody's secret)
    try:
        yield made
    finally:
        made.close()


@settings(max_examples=500)
@given(st.integers(0, TWO_TO_64 - 1))
def test_each_ring_is_served_as_the_specification_says(seed: int) -> None:
    with world(seed) as made:
        made.run()


def test_the_rings_are_wrong_in_every_way() -> None:
    found: Counter[str] = Counter()
    for seed in range(300):
        with world(seed) as made:
            made.run()
            found += made.found
    rare = {lib.PYVMM_RING_REQUEST}
    never = [text for code, text in WRONG.items() if code not in rare and not found[text]]
    assert never == []
    assert found["none"] > 500
