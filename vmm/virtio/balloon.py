"""The memory balloon (VIRTIO 1.2, 5.5): memory that the guest can do without, for the host.

    inflateq    pages that the guest gives, until the balloon has as many as `resize` asked for
    deflateq    pages that it takes back: when fewer are asked for, or it is short of memory
    statsq      how much it has; one buffer, which is with the device until that wants to know
    reportingq  free memory, without being asked: gone when the chain is used

cdefs/balloon.c gives the memory back. What a device may access by DMA (VFIO) is pinned, and must
stay where it is: then nothing goes back, and free memory is not even asked for.
"""

from __future__ import annotations

import mmap
import os
import struct
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

TURN: Final = 4
"""Chains before other devices get their turn: each may name 65536 pages, one by one."""

F_STATS_VQ: Final = 1 << lib.VIRTIO_BALLOON_F_STATS_VQ
F_DEFLATE_ON_OOM: Final = 1 << lib.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
F_PAGE_POISON: Final = 1 << lib.VIRTIO_BALLOON_F_PAGE_POISON
F_REPORTING: Final = 1 << lib.VIRTIO_BALLOON_F_REPORTING

PAGE: Final[int] = 1 << lib.VIRTIO_BALLOON_PFN_SHIFT
"""Bytes of a page as the balloon counts them, whatever pages guest and host have."""

ADVICE: Final = {Backing.ANONYMOUS: mmap.MADV_DONTNEED, Backing.MEMFD: mmap.MADV_REMOVE}
"""What madvise(2) calls giving memory back; of a file, all who map it must lose it."""

ACTUAL: Final = ffi.offsetof("struct virtio_balloon_config", "actual")
POISON: Final = ffi.offsetof("struct virtio_balloon_config", "poison_val")

STATISTIC: Final = struct.Struct("<HQ")
"""``struct virtio_balloon_stat``: tag and value."""

MOST_STATISTICS: Final = 64
"""More than any driver has, yet."""

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


class Balloon(VirtioDevice):
    """A balloon that shall have *size* bytes. *pinned*: nothing may go back to the host."""

    device_id: int = lib.VIRTIO_ID_BALLOON

    def __init__(
        self, name: str, memory: MemoryMap, events: Events, *, size: int = 0, pinned: bool = False
    ) -> None:
        features = F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON
        features |= 0 if pinned else F_REPORTING
        super().__init__(name, memory, events, [QUEUE_SIZE] * (3 if pinned else 4), features)
        self._keep, self.c = _balloon(memory.memory, pinned=pinned)
        self._target = size // PAGE
        self._actual = self._poison = 0
        self._stats: int | None = None  # the chain that waits for us to be curious
        self._curious = True
        self._awaited = True  # nobody was told that it has what it shall have
        self._reports = Bounded(events)  # since the host last wanted something

    # The host's side

    @property
    def target(self) -> int:
        """Bytes that the balloon shall have."""
        return self._target * PAGE

    @property
    def actual(self) -> int:
        """Bytes that the guest says it has."""
        return self._actual * PAGE

    def resize(self, size: int) -> None:
        """Have *size* bytes in the balloon, sooner or later. Thread-safe."""
        self._target = size // PAGE
        self._awaited = True
        self._reports = Bounded(self._events)
        self.config_changed()

    def ask(self) -> None:
        """Have the guest tell how much memory it has: the event ``balloon-stats``. Thread-safe."""
        self._reports = Bounded(self._events)
        self._ask()

    def _ask(self) -> None:
        with self._lock:
            self._curious = True
            self._return_stats()

    # The guest's

    def _role(self, index: int) -> int | None:
        """Return the feature that queue *index* is for; None: the first two.

        Those that were not agreed upon have no queue, and leave no gap, as Linux counts.
        """
        optional = [each for each in (F_STATS_VQ, F_REPORTING) if self.accepted & each]
        return optional[index - 2] if 2 <= index < len(optional) + 2 else None

    def serve(self, index: int, queue: Queue) -> None:
        """Take pages, let them go, or hear how many there are."""
        role = self._role(index)
        for chain in queue.batch(TURN):
            if role == F_STATS_VQ:
                self._hear(chain.read(STATISTIC.size * MOST_STATISTICS))
                if self._stats is not None:  # one too many
                    queue.push(self._stats, 0)
                self._stats = chain.id
                continue
            if role == F_REPORTING:
                # What was poisoned must stay so (5.5.6.7.1), and the host would make it zeroes.
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
        """Emit *event*, but not without end: a guest can start over as often as it likes."""
        self._reports.emit(event, device=self.name, **fields)

    def _return_stats(self) -> None:
        for index, slot in enumerate(self.slots):
            if self._role(index) == F_STATS_VQ and self._stats is not None and slot.queue:
                slot.queue.push(self._stats, 0)
                self._stats = None
                slot.doorbell.signal()  # whoever serves it also interrupts

    def queue_stopped(self, index: int) -> None:
        """Forget the chain that waits."""
        if self._role(index) == F_STATS_VQ:
            self._stats = None

    def stopped(self) -> None:
        """Start with an empty balloon: the next driver uses all memory."""
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
        """Take how many pages the driver has given, or what it fills free memory with."""
        if len(data) == 4 and offset == ACTUAL:
            self._actual = int.from_bytes(data, "little")
            if self._actual == self._target and self._awaited:
                self._awaited = False
                self._report("balloon-reached", size=self.actual)
                self._ask()
        elif len(data) == 4 and offset == POISON and self.accepted & F_PAGE_POISON:
            self._poison = int.from_bytes(data, "little")


def _balloon(memory: GuestMemory, *, pinned: bool) -> tuple[Any, Any]:
    """Return ``struct pyvmm_balloon`` for the RAM in *memory*, and what it needs to live."""
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
    return (ranges, maps), balloon
