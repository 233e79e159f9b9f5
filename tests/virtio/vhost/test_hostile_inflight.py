"""Rings that make no sense, written while another process has their chains, against a model."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.guarded import GuardedArray
from tests.virtio.ring_driver import BASE, SECOND
from tests.virtio.vhost.test_inflight import SIZE, Ringed
from vmm._native import lib

MANY = 255
"""How often one chain may be outstanding: what a byte counts."""


class Hostile:
    """Both sides of a ring, and what has to be known of it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        base = random.choice((0, 5, 0xFFFC))
        self.ringed = Ringed(base=base)
        self.memory, self.areas = self.ringed.memory, self.ringed.driver.areas
        self.avail = self.used = self.seen_avail = self.seen_used = base
        self.exact = True
        self.order: list[int] = []
        """Heads that are outstanding, by when they were last made available."""
        self.since: dict[int, int] = {}
        self.seen = 0

    # Who writes the rings

    def write(self) -> None:
        """Make chains available, use some, and be wrong now and then."""
        random = self.random
        free = [head for head in range(SIZE) if head not in self.pending()]
        for _ in range(random.choice((0, 1, 2))):
            wrong = random.random() < 0.04
            if wrong or free:
                head = free.pop(random.randrange(len(free))) if free else random.randrange(SIZE)
                if wrong:
                    head = random.choice((SIZE, SIZE + 1, 0xFFFF, random.randrange(SIZE)))
                self.pack(self.areas.driver + 4 + 2 * (self.avail % SIZE), "H", head)
                self.avail = self.avail + 1 & 0xFFFF
        for _ in range(random.choice((0, 0, 1, 2))):
            pending = self.pending()
            wrong = random.random() < 0.04
            if pending or wrong:
                head = random.choice(pending) if pending else random.randrange(SIZE)
                if wrong:
                    head = random.choice(
                        (SIZE, head | 1 << 16, 0xFFFF_FFFF, random.randrange(SIZE))
                    )
                self.pack(self.areas.device + 4 + 8 * (self.used % SIZE), "II", head, 0)
                self.used = self.used + 1 & 0xFFFF
        if random.random() < 0.03:
            self.avail = self.avail + random.choice((SIZE, SIZE + 1, 2 * SIZE, -1)) & 0xFFFF
        if random.random() < 0.03:
            self.used = self.used + random.choice((SIZE, SIZE + 1, 2 * SIZE, -1)) & 0xFFFF
        if random.random() < 0.05:
            self.used = self.avail
        self.pack(self.areas.driver + 2, "H", self.avail)
        self.pack(self.areas.device, "HH", random.randrange(2), self.used)

    def pack(self, address: int, form: str, *values: int) -> None:
        self.memory.pack(address, form, *values)

    def entries(self, start: int, end: int, *, used: bool) -> list[int]:
        place, step, form = self.areas.driver + 4, 2, "H"
        if used:
            place, step, form = self.areas.device + 4, 8, "I"
        count = end - start & 0xFFFF
        return [
            self.memory.unpack(place + step * ((start + at) % SIZE), form)[0] for at in range(count)
        ]

    def pending(self) -> list[int]:
        """Return what is outstanding, if the last look and the rings are right."""
        found = list(self.order)
        if (self.avail - self.seen_avail & 0xFFFF) <= SIZE:
            found += self.entries(self.seen_avail, self.avail, used=False)
        if (self.used - self.seen_used & 0xFFFF) <= SIZE:
            for head in self.entries(self.seen_used, self.used, used=True):
                if head in found:
                    found.remove(head)
        return found

    # What has to be known

    def follow(self) -> bool:
        """Take the new entries; return whether they make sense."""
        made = self.avail - self.seen_avail & 0xFFFF
        done = self.used - self.seen_used & 0xFFFF
        if made > SIZE or done > SIZE:
            return False
        for head in self.entries(self.seen_avail, self.avail, used=False):
            if head >= SIZE or self.order.count(head) == MANY:
                return False
            self.seen += 1
            self.since[head] = self.seen
            self.order.append(head)
        ahead = self.used - self.seen_avail & 0xFFFF
        if made >= SIZE and 0 < ahead < 1 << 15:
            return False  # the driver may be overwriting what was read
        for head in self.entries(self.seen_used, self.used, used=True):
            if head not in self.order:
                return False
            self.order.remove(head)
        if done >= SIZE:
            return False
        self.seen_avail, self.seen_used = self.avail, self.used
        return True

    def look(self) -> None:
        self.ringed.look()
        self.must_look()
        c = self.ringed.inflight.c
        assert bool(c.exact) == self.exact
        if self.exact:
            assert (c.avail, c.used) == (self.seen_avail, self.seen_used)
            assert [c.count[head] for head in range(SIZE)] == [
                self.order.count(head) for head in range(SIZE)
            ]

    def must_look(self) -> None:
        if self.exact and self.follow():
            return
        self.exact = self.avail == self.used
        if self.exact:
            self.order = []
            self.seen_avail = self.seen_used = self.avail

    def requeue(self) -> None:
        """Let the process die; check what a new one gets, and that nothing else was written."""
        must = [bytearray(mapping.view) for mapping in self.memory.mappings]
        self.must_look()
        found = -1
        if self.exact and len(set(self.order)) == len(self.order):
            assert len(self.order) == self.seen_avail - self.seen_used & 0xFFFF
            found = self.seen_used
            order = sorted(self.order, key=lambda head: self.since[head])
            for index, head in enumerate(order):
                place = self.areas.driver + 4 - BASE + 2 * ((found + index) % SIZE)
                must[0][place : place + 2] = head.to_bytes(2, "little")
            flags = self.areas.device - SECOND
            must[1][flags : flags + 2] = bytes(2)
        heads = GuardedArray("uint16_t", SIZE)
        assert lib.pyvmm_inflight_requeue(self.ringed.inflight.c, heads.c) == found
        for mapping, each in zip(self.memory.mappings, must, strict=True):
            assert mapping.view.tobytes() == each
        heads.close()


@settings(max_examples=300)
@given(st.integers(0, (1 << 64) - 1))
def test_whatever_is_in_the_rings_is_known_or_known_not_to_be(seed: int) -> None:
    random = Random(seed)  # noqa: S311
    hostile = Hostile(random)
    for _ in range(random.choice((10, 30, 60))):
        hostile.write()
        if random.random() < 0.7:
            hostile.look()
    hostile.requeue()
    hostile.ringed.close()


def test_a_chain_may_be_outstanding_as_often_as_a_byte_counts() -> None:
    hostile = Hostile(Random(0))  # noqa: S311
    for _ in range(MANY + 3):
        hostile.pack(hostile.areas.driver + 4 + 2 * (hostile.avail % SIZE), "H", 3)
        hostile.avail = hostile.avail + 1 & 0xFFFF
        hostile.pack(hostile.areas.driver + 2, "H", hostile.avail)
        hostile.look()
    assert not hostile.exact
    hostile.ringed.close()
