"""The memory balloon (VIRTIO 1.2, 5.5): return memory that the guest does not use to the host.

    inflateq    pages that the guest gives, until the balloon has the size that `resize` set
    deflateq    pages that it takes back: the balloon is to be smaller, or memory is short
    statsq      memory statistics: one buffer, which the device keeps until it wants an update
    reportingq  free memory that the guest reports unasked; returned before the chain is used

cdefs/balloon.c returns the memory. Memory that a device may access by DMA (VFIO) is pinned and must
stay where it is: nothing is returned then, and free page reporting is not offered.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.events import Bounded
from vmm.memory import Backing
from vmm.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.virtio.queue import MemoryMap, Queue

QUEUE_SIZE: Final = 128

TURN: Final = 1
"""Chains served before other devices get their turn: each may name 16384 pages one by one, and cost
as many calls of madvise(2). Drivers name 256 (Linux) or 1024."""

F_STATS_VQ: Final = 1 << lib.VIRTIO_BALLOON_F_STATS_VQ
F_DEFLATE_ON_OOM: Final = 1 << lib.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
F_PAGE_POISON: Final = 1 << lib.VIRTIO_BALLOON_F_PAGE_POISON
F_REPORTING: Final = 1 << lib.VIRTIO_BALLOON_F_REPORTING

PAGE: Final[int] = 1 << lib.VIRTIO_BALLOON_PFN_SHIFT
"""Bytes of a page as the balloon counts, whatever page size guest and host have (5.5.6)."""

ADVICE: Final = {Backing.ANONYMOUS: mmap.MADV_DONTNEED, Backing.MEMFD: mmap.MADV_REMOVE}
"""madvise(2)'s advice that frees memory. A file's pages must be freed for all who map them."""

ACTUAL: Final = ffi.offsetof("struct virtio_balloon_config", "actual")
POISON: Final = ffi.offsetof("struct virtio_balloon_config", "poison_val")

STATISTIC: Final = struct.Struct("<HQ")
"""``struct virtio_balloon_stat``: tag and value."""

MOST_STATISTICS: Final = 64
"""Statistics read of a buffer: more than any driver has so far."""

STATISTICS: Final = {
    lib.VIRTIO_BALLOON_S_SWAP_IN: "swap_in",
    lib.VIRTIO_BALLOON_S_SWAP_OUT: "swap_out",
    lib.VIRTIO_BALLOON_S_MAJFLT: "major_faults",
    lib.VIRTIO_BALLOON_S_MINFLT: "minor_faults",
    lib.VIRTIO_BALLOON_S_MEMFREE: "free",
    lib.VIRTIO_BALLOON_S_MEMTOT: "total",
    lib.VIRTIO_BALLOON_S_AVAIL: "available",
    lib.VIRTIO_BALLOON_S_CACHES: "caches",
    lib.VIRTIO_BALLOON_S_HTLB_PGALLOC: "huge_page_allocations",
    lib.VIRTIO_BALLOON_S_HTLB_PGFAIL: "huge_page_failures",
}


@dataclass(frozen=True)
class BalloonState:
    """Pages that the balloon is to have, and has, and the poison of free pages."""

    target: int
    actual: int
    poison: int


class Balloon(VirtioDevice):
    """A balloon of *size* bytes at first. With *pinned* nothing is returned to the host."""

    device_id: int = lib.VIRTIO_ID_BALLOON
    unmovable = ""
    OwnState = BalloonState

    def __init__(
        self, name: str, memory: MemoryMap, events: Events, *, size: int = 0, pinned: bool = False
    ) -> None:
        features = F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON
        features |= 0 if pinned else F_REPORTING
        super().__init__(name, memory, events, [QUEUE_SIZE] * (3 if pinned else 4), features)
        self._keep, self.c = _balloon(memory.memory, pinned=pinned)
        self._target = size // PAGE
        self._actual = self._poison = 0
        self._stats: int | None = None  # the chain that we keep until statistics are wanted
        self._curious = True
        self._awaited = True  # balloon-reached was not emitted for this target
        self._reports = Bounded(events)  # bounded anew whenever the host asks

    # The host's side

    @property
    def target(self) -> int:
        """Bytes that the balloon is to have."""
        return self._target * PAGE

    @property
    def actual(self) -> int:
        """Bytes that the balloon has, as the guest reports."""
        return self._actual * PAGE

    def resize(self, size: int) -> None:
        """Ask the guest for a balloon of *size* bytes. Thread-safe; does not wait for the guest."""
        self._target = size // PAGE
        self._awaited = True
        self._reports = Bounded(self._events)
        self.config_changed()

    def ask(self) -> None:
        """Ask the guest for statistics: the event ``balloon-stats`` follows. Thread-safe."""
        self._reports = Bounded(self._events)
        self._ask()

    def _ask(self) -> None:
        with self._lock:
            self._curious = True
            self._return_stats()

    # The guest's side

    def _role(self, index: int) -> int | None:
        """Return the feature that queue *index* is for; None for the first two.

        A feature that was not negotiated has no queue and leaves no gap, as Linux counts them.
        """
        optional = [each for each in (F_STATS_VQ, F_REPORTING) if self.accepted & each]
        return optional[index - 2] if 2 <= index < len(optional) + 2 else None

    def serve(self, index: int, queue: Queue) -> None:
        """Inflate, deflate, take statistics or reported free pages, by the queue's role."""
        role = self._role(index)
        for chain in queue.batch(TURN):
            if role == F_STATS_VQ:
                self._hear(chain.read(STATISTIC.size * MOST_STATISTICS))
                if self._stats is not None:  # the driver may have only one (5.5.6.3.1)
                    queue.push(self._stats, 0)
                self._stats = chain.id
                continue
            if role == F_REPORTING:
                # Poisoned pages must keep their poison (5.5.6.7.1); the host would return zeroes.
                if not self._poison:
                    lib.pyvmm_balloon_report(self.c, chain.c)
            elif index == 0:
                lib.pyvmm_balloon_inflate(self.c, chain.c)
            elif index == 1:
                lib.pyvmm_balloon_deflate(self.c, chain.c)
            queue.push(chain.id, 0)
        self._check()

    def _check(self) -> None:
        if self.c.foreign:
            self._complain("balloon-not-ram", pages=self.c.foreign)
            self.c.foreign = 0
        if self.c.error:
            self._complain("balloon-refused", error=os.strerror(self.c.error))
            self.c.error = 0

    def _hear(self, text: bytes) -> None:
        if self._curious:
            self._curious = False
            whole = len(text) - len(text) % STATISTIC.size
            found = dict(STATISTIC.iter_unpack(text[:whole]))
            named = {STATISTICS[tag]: found[tag] for tag in found if tag in STATISTICS}
            self._report("balloon-stats", target=self.target, actual=self.actual, **named)

    def _report(self, event: str, **fields: object) -> None:
        """Emit *event*, bounded: a guest can start over as often as it likes."""
        self._reports.emit(event, device=self.name, **fields)

    def _return_stats(self) -> None:
        for index, slot in enumerate(self.slots):
            if self._role(index) == F_STATS_VQ and self._stats is not None and slot.queue:
                slot.queue.push(self._stats, 0)
                self._stats = None
                slot.doorbell.signal()  # whoever serves it also interrupts

    def queue_paused(self, index: int) -> None:
        """Put the statistics buffer back: it is taken again as the queue goes on."""
        queue = self.slots[index].queue
        if self._role(index) == F_STATS_VQ and self._stats is not None and queue is not None:
            queue.put_back(self._stats)
            self._stats = None

    def own_state(self) -> BalloonState:
        """Return sizes and poison. What the balloon has given back is zeroes in guest memory."""
        return BalloonState(self._target, self._actual, self._poison)

    def restore_own(self, own: BalloonState) -> None:
        """Take over sizes and poison."""
        self._target, self._actual, self._poison = own.target, own.actual, own.poison

    def queue_stopped(self, index: int) -> None:
        """Forget the statistics buffer, which goes with its queue."""
        if self._role(index) == F_STATS_VQ:
            self._stats = None

    def stopped(self) -> None:
        """Empty the balloon: the next driver uses all memory."""
        lib.pyvmm_balloon_forget(self.c)
        self._actual = self._poison = 0
        self._stats = None
        self._curious = self._awaited = True

    # Configuration (5.5.4)

    def config(self) -> bytes:
        """Return ``struct virtio_balloon_config``."""
        values = {"num_pages": self._target, "actual": self._actual, "poison_val": self._poison}
        return bytes(ffi.buffer(ffi.new("struct virtio_balloon_config *", values)))

    def write_config(self, offset: int, data: bytes) -> None:
        """Store the number of pages in the balloon, or the poison of free pages."""
        if len(data) == 4 and offset == ACTUAL:
            self._actual = int.from_bytes(data, "little")
            if self._actual == self._target and self._awaited:
                self._awaited = False
                self._report("balloon-reached", size=self.actual)
                self._ask()
        elif len(data) == 4 and offset == POISON and self.accepted & F_PAGE_POISON:
            self._poison = int.from_bytes(data, "little")


def _balloon(memory: GuestMemory, *, pinned: bool) -> tuple[Any, Any]:
    """Return what must outlive ``struct pyvmm_balloon`` for the RAM in *memory*, and the struct."""
    regions = [region for region in memory if region.backing in ADVICE]
    ranges = ffi.new("struct pyvmm_balloon_range[]", max(len(regions), 1))
    maps = []
    for entry, region in zip(ranges, regions, strict=False):
        entry.base, entry.size = region.base, region.size // mmap.PAGESIZE * mmap.PAGESIZE
        entry.host = ffi.cast("uint8_t *", region.host_address)
        entry.advice = ADVICE[region.backing]
        entry.given = given = ffi.new("uint64_t[]", region.size // PAGE // 64 + 1)
        maps.append(given)
    balloon = ffi.new(
        "struct pyvmm_balloon *",
        {"count": len(regions), "ranges": ranges, "page": mmap.PAGESIZE, "keep": pinned},
    )
    balloon.dirty = memory.dirty.c  # *memory* has it, and outlives the device
    return (ranges, maps), balloon
