"""Guest physical memory: a few host mappings, found by guest address.

Memory in bulk is moved and scanned by the extension, without Python's lock: a slice assignment
of a kernel image would keep every vCPU thread waiting.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmm._native import ffi, lib
from vmm.closing import Closing
from vmm.errors import GuestAddressError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer

HUGE_PAGE = 2 << 20
"""Bytes: the block of a 4 KiB granule's level 2, and what transparent huge pages come in."""

BULK = 256 << 10
"""Bytes from which a copy is worth giving up Python's lock for: that takes 4 us, this 20."""


class Backing(Enum):
    """Where a region's bytes live on the host."""

    ANONYMOUS = "anonymous"
    MEMFD = "memfd"
    HUGETLB = "hugetlbfs"
    DEVICE = "device"


class Region(NamedTuple):
    """Guest physical addresses [base, end), backed by *view*."""

    base: int
    view: memoryview
    backing: Backing = Backing.ANONYMOUS

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.view)

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + len(self.view)

    @property
    def host_address(self) -> int:
        """Where it is in our own address space."""
        with ffi.from_buffer("uint8_t[]", self.view) as pointer:
            return int(ffi.cast("uintptr_t", pointer))


class Mapping(Closing):
    """Owns one host mapping; its `view` is what regions are made of."""

    def __init__(self, mapping: mmap.mmap, offset: int, size: int) -> None:
        self._mapping = mapping
        self._whole = memoryview(mapping)
        self.view = self._whole[offset : offset + size]

    @classmethod
    def anonymous(cls, size: int) -> Mapping:
        """Map *size* bytes of zeroes, at an address that huge pages can start at.

        Nothing is reserved: memory is used as the guest touches it. Raises `HostError`.
        """
        slack = HUGE_PAGE if size >= HUGE_PAGE else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        try:
            mapping = mmap.mmap(-1, size + slack, flags)
        except (OSError, OverflowError, ValueError) as error:
            raise HostError(
                f"cannot map {size >> 20} MiB of guest memory: {error}",
                "ask for less, or raise the limit on address space (ulimit -v)",
            ) from error
        with ffi.from_buffer("uint8_t[]", mapping) as pointer:
            address = int(ffi.cast("uintptr_t", pointer))
        if slack:
            with suppress(OSError):  # a kernel without transparent huge pages
                mapping.madvise(mmap.MADV_HUGEPAGE)
        return cls(mapping, -address % HUGE_PAGE if slack else 0, size)

    def discard(self) -> None:
        """Give the memory back to the host; the guest and we see zeroes from now on."""
        self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap. Every region made of it, and its memory slot, must be gone. Idempotent."""
        self.view.release()
        self._whole.release()
        self._mapping.close()


class GuestMemory:
    """All of the guest's memory. Every access is checked against its regions, here."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = sorted(regions, key=lambda region: region.base)
        self._bases = [region.base for region in self._regions]

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def view(self, address: int, size: int) -> memoryview:
        """Return the *size* bytes at guest physical *address*, without copying.

        Raises `GuestAddressError` unless they lie within one region.
        """
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and size >= 0:
            region = self._regions[index]
            offset = address - region.base
            if offset + size <= len(region.view):
                return region.view[offset : offset + size]
        raise GuestAddressError(address, size)

    def read(self, address: int, size: int) -> bytes:
        """Return a copy of the *size* bytes at *address*. Raises `GuestAddressError`."""
        with self.view(address, size) as view:
            return bytes(view)

    def write(self, address: int, data: ReadableBuffer) -> None:
        """Copy *data* to *address*. Raises `GuestAddressError` before anything is written."""
        with memoryview(data) as plain, plain.cast("B") as source:
            size = len(source)
            with self.view(address, size) as view:
                if size < BULK:
                    view[:] = source
                else:
                    _copy(view, source)


def _copy(to: memoryview, source: memoryview) -> None:
    with (
        ffi.from_buffer("uint8_t[]", to, require_writable=True) as target,
        ffi.from_buffer("uint8_t[]", source) as origin,
    ):
        lib.pyvmm_copy(target, origin, len(source))
