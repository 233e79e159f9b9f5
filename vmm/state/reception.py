"""Take the pages of a live migration into guest RAM, from several connections at once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.coherence.ledger import Maintenance
from vmm.dirty_pages import SHIFT
from vmm.state.stream import interrupt
from vmm.state.together import together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.coherence.ledger import Ledger
    from vmm.memory import Region
    from vmm.state.migration_messages import Round
    from vmm.state.stream import Channel

RUNS = 512


class Reception:
    """Fill *ram*, which is zero, from *channels*. *tell* is called with each round of the first."""

    def __init__(
        self,
        ram: Region,
        channels: Sequence[Channel],
        tell: Callable[[Round], None] = lambda _round: None,
    ) -> None:
        self._ram = ram
        self._address = ram.host_address
        self._channels = channels
        self._tell = tell
        self._pages = -(-ram.size >> SHIFT)
        self._written: Any = ffi.new("uint64_t[]", -(-self._pages // 64))

    def run(self) -> None:
        """Take all pages. Raises `HostError` and `UserError`, as `Channel` does."""
        tasks = [partial(self._take, index) for index in range(len(self._channels))]
        together("incoming", tasks, partial(interrupt, self._channels))

    def _take(self, index: int) -> None:
        while True:
            done = self._channels[index].receive_pages(self._ram, self._address, self._written)
            if index == 0:
                self._tell(done)
            if done.last:
                return

    def maintain(self, ledger: Ledger) -> int:
        """Do what *ledger* owes the pages that were written; return the bytes maintained.

        They may be code: each host whose instruction cache is not coherent is taken care of, too.
        """
        owes = ledger.find(self._ram.base).maintenance is Maintenance.CLEAN_AND_INVALIDATE
        maintained = 0
        at, runs = ffi.new("uint64_t *"), ffi.new("uint64_t[]", 2 * RUNS)
        while count := lib.pyvmm_bitmap_runs(self._written, self._pages, at, runs, RUNS):
            for index in range(count):
                start = runs[2 * index] << SHIFT
                end = min(start + (runs[2 * index + 1] << SHIFT), self._ram.size)
                with self._ram.view[start:end] as view:
                    ledger.after_write(self._ram.base + start, view)
                    with ffi.from_buffer("uint8_t[]", view) as pointer:
                        lib.pyvmm_sync_code(pointer, len(view))
                maintained += end - start if owes else 0
        return maintained
