"""What each range of guest physical memory was promised, and the cache maintenance it is owed.

Userspace is an equal participant in coherency. Where stage 2 forces Write-Back, the guest's
accesses are cacheable as the VMM's are, and both are coherent. Where the guest decides, a guest
that runs with its caches off reads and writes memory past the lines that the VMM's accesses left:

    before a read     clean and invalidate (DC CIVAC): the line may be older than memory
    before a write    the same for a line that is written in part: the rest of it is the guest's
    after a write     clean (DC CVAC): the line may be newer than memory

EL0 cannot invalidate without cleaning, and cleaning a dirty line overwrites what the guest wrote
meanwhile; so each write is cleaned at once. This holds only while the guest leaves the range
alone, paused or by a protocol: a cache may fetch a line at any time.

Without FWB, KVM cleans and invalidates a page when it first maps it, and all pages when a guest
first turns its caches on, or flushes them by set and way (arch/arm64/kvm/mmu.c, kvm_toggle_cache,
kvm_set_way_flush). So nothing is owed for what is written before the guest first runs.

Who calls what, and where nothing is owed, is in this package's README.md. The coherency sanitizer
(`vmm.coherence.sanitizer`) shows what is forgotten.
Source: Arm ARM, "Mismatched memory attributes", and D8.6 on stage 2 attributes (FWB).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.errors import GuestAddressError
from vmm.memory import Backing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Maintenance(Enum):
    """Cache maintenance for the VMM's own accesses behind a guest whose caches are off."""

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
    def addresses(self) -> AddressRange:
        """The range's guest physical addresses."""
        return AddressRange(self.base, self.size)

    @property
    def maintenance(self) -> Maintenance:
        """The cache maintenance that the VMM's accesses need."""
        if self.attribute.stage1 is Stage1.UNCACHED:
            return Maintenance.NOT_OURS
        if self.promise.stage2 in (Stage2.FORCED_WRITE_BACK, Stage2.NO_SLOT):
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
            "stage1_because": self.attribute.because,
            "stage2": self.promise.stage2.value,
            "stage2_because": self.promise.because,
            "maintenance": self.maintenance.value,
            "slot": self.slot,
            "flags": self.flags,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Entry:
        """Return the entry of which *value* is `as_json`. Raises KeyError and ValueError."""
        return cls(
            name=str(value["name"]),
            base=int(value["base"]),
            size=int(value["size"]),
            backing=Backing(value["backing"]),
            attribute=Attribute(Stage1(value["stage1"]), str(value["stage1_because"])),
            promise=Promise(Stage2(value["stage2"]), str(value["stage2_because"])),
            slot=value["slot"],
            flags=int(value["flags"]),
        )


class Ledger:
    """All ranges of one machine, in order of address."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.base)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Add *entry*. Raises ValueError if it overlaps another."""
        for other in self._entries:
            if entry.addresses.overlaps(other.addresses):
                raise ValueError(f"{entry.name} overlaps {other.name} at {other.base:#x}")
        self._entries.append(entry)
        self._entries.sort(key=lambda entry: entry.base)

    def find(self, address: int) -> Entry:
        """Return the entry of *address*. Raises `GuestAddressError` if there is none."""
        for entry in self._entries:
            if entry.addresses.contains(address):
                return entry
        raise GuestAddressError(address, 1)

    def before_read(self, address: int, view: memoryview) -> None:
        """Do the maintenance owed before a read of *view*, the mapping of guest *address*."""
        if self._owes(address, len(view)):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                lib.pyvmm_dc_civac(pointer, len(view))

    def before_write(self, address: int, view: memoryview) -> None:
        """Do the maintenance owed before a write of all of *view*, mapped at guest *address*."""
        if self._owes(address, len(view)) and len(view):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                for edge in (pointer, pointer + len(view) - 1):
                    lib.pyvmm_dc_civac(edge, 1)

    def after_write(self, address: int, view: memoryview) -> None:
        """Do the maintenance owed after a write of *view*, the mapping of guest *address*."""
        if self._owes(address, len(view)) and len(view):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                lib.pyvmm_dc_cvac(pointer, len(view))

    def _owes(self, address: int, size: int) -> bool:
        entry = self.find(address)
        if address + size > entry.addresses.end:
            raise GuestAddressError(address, size)
        return entry.maintenance is Maintenance.CLEAN_AND_INVALIDATE
