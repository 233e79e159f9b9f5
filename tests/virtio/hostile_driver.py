"""A driver of split and packed rings that is wrong in every way now and then, beside a model.

Most of what it makes is right, so that rings live long enough to be wrong in rare ways.
"""

from __future__ import annotations

import struct
from random import Random

from tests.virtio.guarded import Guarded
from tests.virtio.ring_driver import AVAIL, BASE, INDIRECT, NEXT, USED, WRITE
from tests.virtio.ring_model import Image, Model
from vmm.memory import GuestMemory
from vmm.virtio.queue import Areas, Format

KIB64 = 1 << 16
LOW, HIGH, FAR, VAST = BASE, BASE + KIB64, BASE + 3 * KIB64, 1 << 33
"""Regions: the first two adjoin for the guest, and no two for the host."""
RANGES = [(LOW, KIB64), (HIGH, KIB64), (FAR, KIB64), (VAST, 3 << 30)]
RING, DATA, TABLES = LOW + 0x1000, LOW + 0x4000, HIGH + 0x8000
TWO_TO_64 = 1 << 64
STEPS = 60

BUFFERS = (DATA, DATA + 1, LOW, HIGH + 8, FAR, FAR + 40)
ENDS = (HIGH - 8, HIGH + KIB64 - 64, FAR + KIB64 - 64)
"""Where no ring is, or sometimes one is."""
ODD_BUFFERS = (
    *(LOW - 1, HIGH + KIB64, HIGH + KIB64 - 1, FAR - 1, FAR + KIB64 - 1, FAR + KIB64, 0),
    *(VAST, VAST + (1 << 30), VAST + (3 << 30) - 1, TWO_TO_64 - 1, TWO_TO_64 - 16, RING),
)
LENGTHS = (1, 2, 7, 16, 16, 24, 33, 64)
ODD_LENGTHS = (0, 65, 4096, KIB64, KIB64 + 1, 2 * KIB64, 3 * KIB64, 1 << 31, TWO_TO_64 - 1)


class HostileDriver:
    """Guest memory between guard pages, its image, and a driver of a queue that has a model."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.mappings = [Guarded(size) for _, size in RANGES]
        guest = GuestMemory(
            mapping.region(base) for (base, _), mapping in zip(RANGES, self.mappings, strict=True)
        )
        self.guest = guest
        self.image = Image(RANGES)
        self.form = Format(random.random() < 0.5, random.random() < 0.5, random.random() < 0.8)
        self.size = random.choice((1, 2, 3, 4, 5, 8, 8) if self.form.packed else (1, 2, 4, 8, 8))
        if random.random() < 0.03:
            self.size = 6
        self.capacity = random.choice((2, 3, self.size, 20, 20, 20, 20))
        self.areas = self.place()
        self.model = Model(self.image, self.size, self.areas, self.form, self.capacity)
        rings = [area >> 16 for area in self.areas if area & 0xFFFF > KIB64 // 2]
        self.places = BUFFERS + tuple(at for at in ENDS if at >> 16 not in rings)
        self.offered: list[int] = []
        self.slot, self.wrap, self.avail = 0, 1, 0

    def close(self) -> None:
        for each in self.mappings:
            each.close()

    def write(self, address: int, data: bytes) -> None:
        """Let the driver write, as far as there is memory."""
        for at in range(0, len(data), 2):
            if self.image.contains(address + at, 2):
                self.image.write(address + at, data[at : at + 2])
                self.guest.write(address + at, data[at : at + 2])

    def check(self) -> None:
        """Check that all of memory is as the model has it."""
        for (base, _), mapping in zip(RANGES, self.mappings, strict=True):
            if base in self.image.bytes:
                assert mapping.view.tobytes() == self.image.bytes[base], self.difference(base)

    def difference(self, base: int) -> str:
        """Say where memory differs from what it has to be."""
        has, must = self.guest.read(base, KIB64), self.image.bytes[base]
        at = next(at for at in range(KIB64) if has[at] != must[at])
        return f"{base + at:#x}: {has[at : at + 16].hex()} and not {must[at : at + 16].hex()}"

    def place(self) -> Areas:
        """Choose where the ring is: sometimes up to the last byte of memory, or beyond it."""
        random, size = self.random, self.size
        behind = HIGH + KIB64
        first = [RING, RING, HIGH - 16 * size] if random.random() < 0.9 else [RING + 8, LOW - 16]
        driver, device = [RING + 0x1000], [RING + 0x2000]
        if random.random() < 0.06:
            first += [HIGH - 16 * size + 16, FAR + KIB64 - 16 * size + 16]
        if self.form.packed:
            driver += [behind - 4, behind - 4]
            device += [FAR + KIB64 - 4] * 2
            if random.random() < 0.06:
                driver, device = [behind - 2, RING + 0x1002], [FAR + KIB64, RING + 0x2002]
        else:
            driver += [behind - 6 - 2 * size] * 2
            device += [FAR + KIB64 - 8 - 8 * size] * 2
            if random.random() < 0.06:
                driver += [behind - 4 - 2 * size, RING + 0x1001]
                device += [FAR + KIB64 - 4 - 8 * size, FAR + KIB64 - 8 - 4 * size, RING + 0x2002]
        return Areas(*map(random.choice, (first, driver, device)))

    def buffers(self, count: int) -> list[tuple[int, int, int]]:
        """Return address, length and flags of *count* buffers, readable ones first."""
        random = self.random
        readable = random.randrange(count + 1)
        if random.random() < 0.02:  # 4 GiB and more
            return [(VAST, 1 << 31, 0 if at < readable else WRITE) for at in range(count)]
        return [
            (random.choice(self.places), random.choice(LENGTHS), 0 if at < readable else WRITE)
            for at in range(count)
        ]

    def spoil(self, address: int, length: int, flags: int) -> tuple[int, int, int]:
        """Make one field wrong, now and then."""
        random = self.random
        if random.random() > 0.03:
            return address, length, flags
        return random.choice(
            (
                (random.choice(ODD_BUFFERS), length, flags),
                (address, random.choice(ODD_LENGTHS) & 0xFFFF_FFFF, flags),
                (VAST, random.choice((1 << 31, 3 << 29, 1 << 30)), flags),
                (VAST, 3 << 30, flags),
                (address, length, flags ^ random.choice((NEXT, WRITE, INDIRECT))),
                (address, length, flags | 1 << random.randrange(16)),
            )
        )

    def linked(
        self, chain: list[tuple[int, int, int]], *, loops: bool = False
    ) -> list[tuple[int, int, int]]:
        """Return *chain* with each descriptor's NEXT, and here and there a mistake."""
        last = len(chain) - 1
        return [
            self.spoil(address, length, flags | (NEXT if index < last or loops else 0))
            for index, (address, length, flags) in enumerate(chain)
        ]

    def table(self, at: int, chain: list[tuple[int, int, int]]) -> None:
        """Write an indirect table."""
        random = self.random
        for index, (address, length, spoilt) in enumerate(self.linked(chain)):
            flags = spoilt & ~NEXT if self.form.packed and random.random() < 0.95 else spoilt
            following = index + 1
            if random.random() < 0.03:
                following = random.choice((0, index, len(chain), len(chain) + 1, 0xFFFF))
            last = (random.choice((0, 77)), flags) if self.form.packed else (flags, following)
            self.write(at + 16 * index, struct.pack("<QIHH", address, length, *last))

    def outer(self, most: int) -> list[tuple[int, int, int]]:
        """Return descriptors for the ring: buffers, or the last is a table."""
        random = self.random
        if random.random() < (0.35 if self.form.indirect else 0.02):
            counts = [count for count in (1, 2, 3, 6) if count <= self.capacity]
            inner = self.buffers(random.choice(counts if random.random() < 0.98 else (6, 21)))
            at = random.choice((TABLES, FAR + KIB64 - 16 * len(inner)))
            if random.random() < 0.05:
                at = FAR + KIB64 - 16 * len(inner) + random.choice((-1, 1, 2, 15, 16))
            self.table(at, inner)
            length = 16 * len(inner)
            if random.random() < 0.08:
                length = random.choice(
                    (0, 8, 15, length + 1, length + 16, length - 16, KIB64, 1 << 31)
                )
            table = (at, length & 0xFFFF_FFFF, INDIRECT)
            if random.random() < (0.02 if self.form.packed else 0.15) and most > 1:
                return [(DATA, 16, 0), table]
            return [table]
        return self.buffers(random.randint(1, most))

    def drive(self) -> None:
        """Make a chain available."""
        if self.form.packed:
            self._drive_packed()
        else:
            self._drive_split()

    def _drive_packed(self) -> None:
        random, size = self.random, self.size
        ahead = (self.slot - self.model.next_avail) % size
        room = size - self.model.in_flight - ahead
        if room < 1 and random.random() < 0.99:
            return
        most = max(1, room) if random.random() < 0.98 else size
        loops = random.random() < 0.02
        chain = [(DATA, 1, 0)] * size if loops else self.outer(most)
        identity = random.choice((0, 1, 5, size, 0xFFFF, random.getrandbits(16)))
        if random.random() < 0.98 and (identity in self.model.taken or identity in self.offered):
            return
        written = []
        for index, (address, length, flags) in enumerate(self.linked(chain, loops=loops)):
            mark = AVAIL if self.wrap else USED
            if random.random() < 0.02:
                mark ^= random.choice((AVAIL, USED, AVAIL | USED))
            last = identity if index + 1 == len(chain) else random.getrandbits(16)
            data = struct.pack("<QIHH", address, length, last, flags | mark)
            written.append((self.areas.descriptors + 16 * self.slot, data))
            self.slot += 1
            if self.slot == size:
                self.slot, self.wrap = 0, self.wrap ^ 1
        for place, data in written:
            self.write(place, data)
        self.offered.append(identity)

    def _drive_split(self) -> None:
        random, size = self.random, self.size
        free = [head for head in range(size) if head not in {*self.model.taken, *self.offered}]
        waiting = (self.avail - self.model.next_avail) & 0xFFFF
        if waiting + len(self.model.taken) >= size and random.random() < 0.99:
            return
        if not free or random.random() < 0.02:
            free = list(range(size))
        chain = self.outer(len(free))
        loops = random.random() < 0.02
        if loops:
            chain = [(DATA, 1, 0)] * len(free)
        numbers = random.sample(free, min(len(chain), len(free)))
        for index, (number, described) in enumerate(
            zip(numbers, self.linked(chain[: len(numbers)], loops=loops), strict=True)
        ):
            address, length, flags = described
            following = random.randrange(size)
            if index + 1 < len(numbers):
                following = numbers[index + 1]
            elif loops:
                following = numbers[random.choice((0, index))]
            if random.random() < 0.03:
                following = random.choice((number, numbers[0], size, size + 1, 0xFFFF))
            data = struct.pack("<QIHH", address, length, flags, following)
            self.write(self.areas.descriptors + 16 * number, data)
        head = numbers[0]
        if random.random() < 0.02:
            head = random.choice((size, size + 1, 0xFFFF, random.randrange(size)))
        self.write(self.areas.driver + 4 + 2 * (self.avail % size), struct.pack("<H", head))
        self.offered.append(head)
        self.avail += 1
        if random.random() < 0.02:
            self.avail += random.choice((1, size - 1, size, size + 1, -1, 1 << 15))
        self.avail &= 0xFFFF
        self.write(self.areas.driver + 2, struct.pack("<H", self.avail))

    def suppress(self) -> None:
        """Let the driver write what says when to interrupt."""
        random, driver = self.random, self.areas.driver
        if self.form.packed:
            slot = (self.model.next_used + random.randrange(-3, 4)) % self.size
            if random.random() < 0.1:
                slot = random.getrandbits(15)
            flags = random.choice((0, 1, 2, 2, 2, 3, 6, 0x8001))
            self.write(driver, struct.pack("<HH", slot | random.randrange(2) << 15, flags))
        else:
            event = (self.model.next_used + random.randrange(-4, 5)) & 0xFFFF
            self.write(driver, struct.pack("<H", random.choice((0, 1, 2, 0xFFFF))))
            self.write(driver + 4 + 2 * self.size, struct.pack("<H", event))
