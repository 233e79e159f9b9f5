"""The coherency sanitizer: make forgotten cache maintenance fail at once, on any machine.

In its mode RAM that the ledger owes maintenance for has two copies: the guest's slot maps one,
"DRAM", and this process reads and writes the other, "cache". Only the ledger's cache maintenance
moves lines between them (cdefs/sanitizer.c). So what this process reads of the guest without
`Ledger.before_read` is old, and what it writes without `Ledger.after_write` never arrives: as on a
CPU without FEAT_S2FWB under a guest whose caches are off, but each time, and under emulation too.
One case is not seen: cdefs/sanitizer.c has it.

RAM that is coherent, forced Write-Back, has one copy as ever. A guest cannot share memory with
virtio devices in this mode, nor with assigned ones: they are coherent with its caches, and there
are none here.
"""

from __future__ import annotations

from vmm._native import ffi, lib
from vmm.memory import AnonymousMapping, Mapping, Region


class TwoCopies(Mapping):
    """Own guest memory of *size* bytes in two copies: `view` is this process's, `memory` DRAM."""

    def __init__(self, size: int) -> None:
        self._cache = AnonymousMapping(size)
        self._memory = AnonymousMapping(size)
        self._synced = AnonymousMapping(size)
        self.view = self._cache.view
        self.memory = self._memory.view
        self._begin()

    def _begin(self) -> None:
        copies = [Region(0, each.view).host_address for each in (self._cache, self._memory)]
        synced = Region(0, self._synced.view).host_address
        cache, memory = (ffi.cast("void *", address) for address in copies)
        self._address = copies[0]
        error = lib.pyvmm_sanitize(cache, memory, ffi.cast("void *", synced), len(self.view))
        assert not error, "more ranges than the sanitizer has"

    def region(self, base: int) -> Region:
        """Return a region whose bytes are this process's, and whose slot is to be `memory`."""
        return Region(base, self.view, slot_address=Region(0, self.memory).host_address)

    def first_map(self) -> None:
        """Do what KVM does when it first maps a page: clean it, and invalidate it.

        Source: arch/arm64/kvm/hyp/pgtable.c, stage2_map_walker_try_leaf.
        """
        with ffi.from_buffer("uint8_t[]", self.view) as pointer:
            lib.pyvmm_dc_civac(pointer, len(self.view))

    def discard(self) -> None:
        """Zero all copies."""
        for each in (self._cache, self._memory, self._synced):
            each.discard()

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._address:
            lib.pyvmm_unsanitize(ffi.cast("void *", self._address))
            self._address = 0
        for each in (self._cache, self._memory, self._synced):
            each.close()
