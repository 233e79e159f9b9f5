"""KVM's dirty log of one memory slot: which pages the guest, and KVM for it, have stored to.

    start   KVM_MEM_LOG_DIRTY_PAGES
    fetch   KVM_GET_DIRTY_LOG
    clear   KVM_CLEAR_DIRTY_LOG, a piece at a time, before its pages are read

With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 a page is write-protected when it is cleared, and with
KVM_DIRTY_LOG_INITIALLY_SET not before (Documentation/virt/kvm/api.rst, 7.18); an older kernel does
both in `fetch`, for all of the slot.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.errors import HostError
from vmm.kvm.capability import Cap
from vmm.kvm.vm import MemFlag

if TYPE_CHECKING:
    from vmm.kvm.slots import MemorySlot, MemorySlots
    from vmm.kvm.vm import Vm

GROUP: Final = 64
"""Pages: what `DirtyLog.clear` begins and ends at is a multiple of it."""

MANUAL: Final = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | lib.KVM_DIRTY_LOG_INITIALLY_SET


class DirtyLog:
    """Log stores to *slot* of *vm*, which has *pages* of the host's size. Thread-safe."""

    def __init__(self, vm: Vm, slots: MemorySlots, slot: MemorySlot, pages: int) -> None:
        self._vm: Vm | None = vm
        self._slots = slots
        self._slot = slot
        self._pages = pages
        self._lock = Lock()
        offered = vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2) & MANUAL
        self._manual = bool(offered & lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        if self._manual:
            vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, offered)

    def start(self) -> None:
        """Log from now on. Raises `KvmError`."""
        self._slot = self._slots.set_flags(self._slot, self._slot.flags | MemFlag.LOG_DIRTY_PAGES)

    def stop(self) -> None:
        """Log no longer. Raises `KvmError`."""
        with self._lock:
            if self._vm is not None:
                plain = self._slot.flags & ~MemFlag.LOG_DIRTY_PAGES
                self._slot = self._slots.set_flags(self._slot, plain)

    def forget(self) -> None:
        """Forget the VM, which ends: nothing is asked of it once this returns."""
        with self._lock:
            self._vm = None

    def fetch(self, into: Any) -> int:
        """Add the pages that were stored to, to the bitmap *into*; return how many it has then.

        Raises `KvmError`, and `HostError` if the VM has ended.
        """
        with self._lock:
            found = self._alive().get_dirty_log(self._slot.number, self._pages)
        with ffi.from_buffer("uint64_t[]", found) as bitmap:
            return int(lib.pyvmm_bitmap_merge(into, bitmap, self._pages))

    def clear(self, first: int, pages: int, bitmap: Any) -> None:
        """Tell of further stores to the pages in *bitmap*; see `Vm.clear_dirty_log`."""
        if self._manual:
            with self._lock:
                self._alive().clear_dirty_log(self._slot.number, first, pages, bitmap)

    def _alive(self) -> Vm:
        if self._vm is None:
            raise HostError("the guest was reset, or has ended")
        return self._vm
