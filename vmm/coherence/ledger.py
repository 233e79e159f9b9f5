"""What each range of guest physical memory was promised, and what we owe it.

Userspace is an equal participant in coherency. Where stage 2 forces Write-Back, our cached
accesses and the guest's agree whatever the guest does. Where the guest decides, one that runs
with its caches off reads and writes past the lines that we hold:

    before we read    clean and invalidate (DC CIVAC): our line may be older than memory
    before we write   the same for a line that we write part of: the rest of it is the guest's
    after we write    clean (DC CVAC): our line may be newer than memory

EL0 cannot invalidate without cleaning, and cleaning a dirty line overwrites what the guest wrote
meanwhile: so each write is cleaned at once, and our lines are never dirty when it counts. And
all of it holds only while the guest leaves the range alone, paused or by a protocol: caches may
fetch a line again at any moment.

KVM does its part without FWB: it cleans and invalidates a page when it first maps it, and all of
them when a guest first switches its caches on, or flushes them by set and way
(arch/arm64/kvm/mmu.c, kvm_toggle_cache, kvm_set_way_flush). So what is written before the guest
first runs needs nothing of ours.

Snapshots and migration ask here; nothing else in pyvmm decides about cache maintenance.
Source: Arm ARM, "Mismatched memory attributes", and D8.6 on stage 2 attributes (FWB).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.errors import GuestAddressError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm.memory import Backing


class Maintenance(Enum):
    """What the VMM owes a range when it accesses it behind a guest whose caches are off."""

    NONE = "none"
    CLEAN_AND_INVALIDATE = "DC CIVAC before access, DC CVAC after writes"
    NOT_OURS = "uncached for us as well: none"


@dataclass(frozen=True)
class Entry:
    """One range: guest physical addresses [base, base + size).

    slot     the memory slot's number; None if accesses are trapped
    flags    KVM_MEM_* of that slot
    """

    name: str
    base: int
    size: int
    backing: Backing
    attribute: Attribute
    promise: Promise
    slot: int | None = None
    flags: int = 0

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size

    @property
    def maintenance(self) -> Maintenance:
        """Which cache maintenance accesses of ours owe."""
        if self.attribute.stage1 is Stage1.UNCACHED:
            return Maintenance.NOT_OURS
        if self.promise.stage2 in (Stage2.WRITE_BACK, Stage2.NO_SLOT):
            return Maintenance.NONE
        return Maintenance.CLEAN_AND_INVALIDATE

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "base": self.base,
            "size": self.size,
            "backing": self.backing.value,
            "stage1": self.attribute.stage1.value,
            "stage1-because": self.attribute.because,
            "stage2": self.promise.stage2.value,
            "stage2-because": self.promise.because,
            "maintenance": self.maintenance.value,
            "slot": self.slot,
            "flags": self.flags,
        }


class Ledger:
    """All ranges of one machine, by address."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.base)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Enter a range. Raises ValueError if part of it has an entry."""
        for other in self._entries:
            if entry.base < other.end and other.base < entry.end:
                raise ValueError(f"{entry.name} overlaps {other.name} at {other.base:#x}")
        self._entries.append(entry)
        self._entries.sort(key=lambda entry: entry.base)

    def find(self, address: int) -> Entry:
        """Return the range that *address* is in. Raises `GuestAddressError`."""
        for entry in self._entries:
            if entry.base <= address < entry.end:
                return entry
        raise GuestAddressError(address, 1)

    def before_read(self, address: int, view: memoryview) -> None:
        """Do what is owed before we read *view*, our mapping of guest *address*."""
        if self._owes(address, len(view)):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                lib.pyvmm_dc_civac(pointer, len(view))

    def before_write(self, address: int, view: memoryview) -> None:
        """Do what is owed before we write all of *view*, our mapping of guest *address*."""
        if self._owes(address, len(view)) and len(view):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                for edge in (pointer, pointer + len(view) - 1):
                    lib.pyvmm_dc_civac(edge, 1)

    def after_write(self, address: int, view: memoryview) -> None:
        """Do what is owed after we wrote *view*, our mapping of guest *address*."""
        if self._owes(address, len(view)):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                lib.pyvmm_dc_cvac(pointer, len(view))

    def _owes(self, address: int, size: int) -> bool:
        entry = self.find(address)
        if address + size > entry.end:
            raise GuestAddressError(address, size)
        return entry.maintenance is Maintenance.CLEAN_AND_INVALIDATE
