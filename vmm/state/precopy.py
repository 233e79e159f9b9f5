"""Move guest RAM while the guest runs: rounds over the pages that it wrote meanwhile.

    round 0     all pages
    round n     those that were written since, until the rest takes less than the goal
    finish      the rest, while the guest is paused

A page is cleared in KVM's log before it is read, so that a store during the read is logged again.
Pages go by number to one of the channels, and always to the same one: none overtakes another.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from vmm._native import ffi, lib
from vmm.coherence.ledger import Maintenance
from vmm.dirty_pages import SHIFT
from vmm.errors import HostError
from vmm.state.migration_messages import Round
from vmm.state.stream import interrupt
from vmm.state.together import together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.coherence.ledger import Ledger
    from vmm.dirty_pages import DirtyPages
    from vmm.memory import Region
    from vmm.state.stream import Channel

PIECE: Final = 8 << 20 >> SHIFT
"""Pages that are cleared, maintained and sent at a time; a multiple of `dirty_log.GROUP`."""

RUNS: Final = 512

ROUNDS: Final = 60
"""Rounds after which the guest is found to write faster than its memory can be moved."""

PROGRESS: Final = 0.7
"""A round that leaves more than this share of the one before does not converge."""

THROTTLES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
"""The share of time that vCPUs rest; the next one each time that a round does not converge."""


class Log(Protocol):
    """A dirty log: `vmm.kvm.dirty_log.DirtyLog`."""

    def fetch(self, into: Any, /) -> int:
        """Add the pages that were stored to."""

    def clear(self, first: int, pages: int, bitmap: Any, /) -> None:
        """Tell of further stores to these pages."""


class Told(NamedTuple):
    """A round as it ends.

    number, sent, zero  the round; bytes of pages that went over the stream, and of zeroes
    seconds, rate       how long it took; bytes of pages a second
    remaining           bytes of pages that were written meanwhile
    expected_downtime   seconds that these take; None: nothing was measured yet
    throttle            the share of time that vCPUs rest now
    """

    number: int
    sent: int
    zero: int
    seconds: float
    rate: float
    remaining: int
    expected_downtime: float
    throttle: float


class Precopy:
    """Send *ram* over *channels*, in one thread. *goal*: the downtime to be reached, in seconds.

    *own* and *log* note pages already. *tell* is called with each round, *throttle* with the share
    of time that vCPUs are to rest. All raise `HostError`.
    """

    def __init__(  # noqa: PLR0913  (what a machine has)
        self,
        ram: Region,
        log: Log,
        own: DirtyPages,
        ledger: Ledger,
        channels: Sequence[Channel],
        *,
        goal: float,
        tell: Callable[[Told], None] = lambda _told: None,
        throttle: Callable[[float], None] = lambda _share: None,
    ) -> None:
        self._ram = ram
        self._address = ram.host_address
        self._log, self._own, self._ledger = log, own, ledger
        self._channels = channels
        self._goal = goal
        self._tell, self._throttle = tell, throttle
        self._owes = ledger.find(ram.base).maintenance is Maintenance.CLEAN_AND_INVALIDATE
        self._todo = ffi.new("uint64_t[]", -(-own.pages // 64))
        ffi.memmove(self._todo, b"\xff" * (own.pages // 8), own.pages // 8)
        for page in range(own.pages // 8 * 8, own.pages):
            self._todo[page // 64] |= 1 << page % 64
        self._rate = 0.0
        self.maintained = 0
        """Bytes that were cleaned and invalidated before they were read."""
        self.number = 0
        """Rounds so far."""

    def run(self) -> None:
        """Send rounds until the rest takes less than the goal; the guest runs.

        Raises `HostError` too if that does not come to pass.
        """
        before, level = self._ram.size, 0
        for number in range(ROUNDS):
            began, sent = time.monotonic(), self._moved()
            self._send()
            raw, zero = (now - then for now, then in zip(self._moved(), sent, strict=True))
            seconds = max(time.monotonic() - began, 1e-6)
            self._rate = (raw / seconds) if raw else self._rate
            remaining = self.collect() << SHIFT
            expected = remaining / self._rate if self._rate else 0.0
            if number and expected > self._goal and remaining > before * PROGRESS:
                level = min(level + 1, len(THROTTLES) - 1)
                self._throttle(THROTTLES[level])
            share = THROTTLES[level]
            self._tell(Told(number, raw, zero, seconds, self._rate, remaining, expected, share))
            self.number = number + 1
            if expected <= self._goal:
                return
            before = remaining
        raise HostError(
            f"the guest writes its memory faster than it moves: after {ROUNDS} rounds the rest "
            f"would take {expected:.1f} s",
            "allow a longer --downtime, or move it when it does less",
        )

    def _moved(self) -> tuple[int, int]:
        moved = [channel.moved for channel in self._channels]
        return sum(each.raw for each in moved), sum(each.zero for each in moved)

    def collect(self) -> int:
        """Take what was written since it was sent; return pages."""
        self._own.take(self._todo)
        return self._log.fetch(self._todo)

    def finish(self) -> None:
        """Send the rest, which `collect` has found; the guest is paused."""
        self._send(last=True)

    def _send(self, *, last: bool = False) -> None:
        """Send what is to be sent, and end the round on each channel."""
        shares = range(len(self._channels))
        tasks = [partial(self._send_share, index, last=last) for index in shares]
        together("migrate", tasks, partial(interrupt, self._channels))

    def _send_share(self, index: int, *, last: bool) -> None:
        """Send every piece that is channel *index*'s."""
        pages, stride = self._own.pages, PIECE * len(self._channels)
        for first in range(index * PIECE, pages, stride):
            count = min(PIECE, pages - first)
            bitmap = self._todo + first // 64
            if lib.pyvmm_bitmap_count(bitmap, count):
                self._log.clear(first, count, bitmap)
                self._maintain(first, count, bitmap)
                self._channels[index].send_pages(self._ram, self._address, bitmap, first, count)
                ffi.memmove(bitmap, bytes(-(-count // 64) * 8), -(-count // 64) * 8)
        self._channels[index].send(Round(self.number, last))

    def _maintain(self, first: int, pages: int, bitmap: Any) -> None:
        """Do the cache maintenance that is owed before these pages are read."""
        if not self._owes:
            return
        at, runs = ffi.new("uint64_t *"), ffi.new("uint64_t[]", 2 * RUNS)
        while count := lib.pyvmm_bitmap_runs(bitmap, pages, at, runs, RUNS):
            for index in range(count):
                start = (first + runs[2 * index]) << SHIFT
                end = min(start + (runs[2 * index + 1] << SHIFT), self._ram.size)
                with self._ram.view[start:end] as view:
                    self._ledger.before_read(self._ram.base + start, view)
                self.maintained += end - start
