"""Guest physical memory: a few host mappings, found by guest address.

The C extension copies large amounts without Python's lock: a slice assignment of a kernel image
would keep every vCPU thread waiting.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from bisect import bisect_right
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.dirty_pages import DirtyPages
from vmm.errors import GuestAddressError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer

HUGE_PAGE = 2 << 20
"""Bytes: a level 2 block of the 4 KiB granule, and the size of a transparent huge page."""

BULK = 256 << 10
"""Bytes from which a copy releases Python's lock: releasing takes 4 us, the copy 20."""


READ_MOST = 64 << 20
"""Bytes that one system call reads."""


class Backing(Enum):
    """Where a region's bytes live on the host."""

    ANONYMOUS = "anonymous"
    MEMFD = "memfd"
    DEVICE = "device"
    FILE = "file"


class Region(NamedTuple):
    """Guest physical addresses [base, end), backed by *view*.

    Another process can map the same bytes from the file *fd* at *offset*; *fd* is -1 if there is no
    such file. The guest cannot write a *read_only* region. *slot_address* is the host address of
    its memory slot, if the guest has another copy (`vmm.coherence.sanitizer`).
    """

    base: int
    view: memoryview
    backing: Backing = Backing.ANONYMOUS
    fd: int = -1
    offset: int = 0
    read_only: bool = False
    slot_address: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.view)

    @property
    def end(self) -> int:
        """The first guest physical address after the region."""
        return self.base + len(self.view)

    @property
    def host_address(self) -> int:
        """Its address in this process."""
        with ffi.from_buffer("uint8_t[]", self.view) as pointer:
            return int(ffi.cast("uintptr_t", pointer))


class Mapping(Closeable):
    """Own one host mapping. Regions are made of its `view`."""

    view: memoryview

    @staticmethod
    def anonymous(size: int) -> AnonymousMapping:
        """Map *size* bytes of zeroes, aligned for huge pages.

        Nothing is reserved: the host allocates pages as the guest touches them. Raises `HostError`.
        """
        return AnonymousMapping(size)

    @staticmethod
    def memfd(size: int) -> MemfdMapping:
        """Map *size* bytes as `anonymous` does, but of a file that other processes can map."""
        return MemfdMapping(size)

    def region(self, base: int) -> Region:
        """Return a region of all of it, at guest physical address *base*."""
        raise NotImplementedError

    def discard(self) -> None:
        """Give the memory back to the host. The guest and this process see zeroes from now on."""
        raise NotImplementedError

    def load(self, fd: int) -> None:
        """Fill the memory, which is zero, from the file *fd* of the same size. Raises OSError.

        Holes stay unallocated.
        """
        _read_data(fd, self.view)

    def first_map(self) -> None:
        """Bring what was written to the guest, as KVM does by itself; see the sanitizer."""

    def close(self) -> None:
        """Unmap. Its regions and their memory slots must be gone. Idempotent."""
        raise NotImplementedError


def _refused(size: int, error: Exception) -> HostError:
    return HostError(
        f"cannot map {size >> 20} MiB of guest memory: {error}",
        "ask for less, or raise the limit on address space (ulimit -v)",
    )


class AnonymousMapping(Mapping):
    """Memory of this process alone."""

    def __init__(self, size: int) -> None:
        slack = HUGE_PAGE if size >= HUGE_PAGE else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        try:
            self._mapping = mmap.mmap(-1, size + slack, flags)
        except (OSError, OverflowError, ValueError) as error:
            raise _refused(size, error) from error
        with ffi.from_buffer("uint8_t[]", self._mapping) as pointer:
            address = int(ffi.cast("uintptr_t", pointer))
        if slack:
            with suppress(OSError):  # a kernel without transparent huge pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        try:
            self._mapping.madvise(mmap.MADV_DONTDUMP)  # a core dump is no place for secrets
            self._mapping.madvise(mmap.MADV_DONTFORK)  # nor is a child process
        except OSError as error:
            self._mapping.close()
            raise _refused(size, error) from error
        offset = -address % HUGE_PAGE if slack else 0
        self._whole = memoryview(self._mapping)
        self.view = self._whole[offset : offset + size]
        self._address, self._loaded = address + offset, False

    def region(self, base: int) -> Region:
        """Return a region of all of it, at guest physical address *base*."""
        return Region(base, self.view)

    def load(self, fd: int) -> None:
        """Show the contents of the file *fd*, a page at a time as each is first touched.

        The file is mapped privately: nothing is written to it, and processes that load the same one
        share its pages until they write. Nobody may change it meanwhile. Raises OSError.
        """
        self._map(fd)
        self._loaded = True

    def _map(self, fd: int) -> None:
        size = len(self.view)
        _check(lib.pyvmm_map_private(self._address, fd, 0, size))
        for advice in (mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK):  # as the constructor does
            _check(lib.pyvmm_madvise(self._address, size, advice))

    def discard(self) -> None:
        """Give the memory back to the host. The guest and this process see zeroes from now on."""
        if self._loaded:
            self._map(-1)
            self._loaded = False
        self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap. Its regions and their memory slots must be gone. Idempotent."""
        self.view.release()
        self._whole.release()
        self._mapping.close()


SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class MemfdMapping(Mapping):
    """Memory of an unnamed file (memfd_create(2)) that other processes can map by its `fd`.

    Its size is sealed: an access beyond a file's end would be a SIGBUS. So are its seals: a daemon
    that has it could forbid writes to whoever maps it next.
    """

    def __init__(self, size: int) -> None:
        alignment = HUGE_PAGE if size >= HUGE_PAGE else mmap.PAGESIZE
        address = ffi.new("uintptr_t *")
        self.fd = -1
        try:
            self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            _check(lib.pyvmm_map_aligned(self.fd, 0, size, 1, alignment, 0, address))
        except (OSError, OverflowError) as error:
            self._close_file()
            raise _refused(size, error) from error
        self._address, self._size = int(address[0]), size
        # Views keep the pointer alive, so the mapping outlives them all.
        pointer = ffi.gc(ffi.cast("uint8_t *", self._address), partial(_unmap, size))
        self.view = memoryview(ffi.buffer(pointer, size))
        try:
            _check(self._advise(mmap.MADV_DONTDUMP))
            _check(self._advise(mmap.MADV_DONTFORK))
        except OSError as error:
            self.close()
            raise _refused(size, error) from error
        # Has an effect only if shmem_enabled of the host allows it.
        self._advise(mmap.MADV_HUGEPAGE)

    def _advise(self, advice: int) -> int:
        return int(lib.pyvmm_madvise(self._address, self._size, advice))

    def region(self, base: int) -> Region:
        """Return a region of all of it, at guest physical address *base*."""
        return Region(base, self.view, Backing.MEMFD, self.fd)

    def discard(self) -> None:
        """Punch a hole as large as the file: every process that maps it sees zeroes from now on."""
        _check(self._advise(mmap.MADV_REMOVE))

    def close(self) -> None:
        """Close the file, and unmap as soon as the last view is gone. Idempotent."""
        self.view.release()
        self._close_file()

    def _close_file(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _read_data(fd: int, view: memoryview) -> None:
    """Read what is not in holes of *fd* into *view*, which is zero. Raises OSError."""
    at = 0
    while at < len(view):
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = min(os.lseek(fd, at, os.SEEK_HOLE), len(view))
        while at < end:
            with view[at : min(end, at + READ_MOST)] as part:
                done = os.preadv(fd, [part], at)
            if not done:
                raise OSError(errno.EIO, "the file has become shorter")
            at += done


def _check(error: int) -> None:
    """Raise OSError for a negative errno."""
    if error:
        raise OSError(-error, os.strerror(-error))


def _unmap(size: int, pointer: Any) -> None:
    lib.pyvmm_unmap(int(ffi.cast("uintptr_t", pointer)), size)


class GuestMemory:
    """All of the guest's memory. Every access is checked against its regions here."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = sorted(regions, key=lambda region: region.base)
        self._bases = [region.base for region in self._regions]
        ram = next((each for each in self._regions if each.backing is not Backing.FILE), None)
        self.dirty: Final = (
            DirtyPages(0, 0) if ram is None else DirtyPages(ram.host_address, ram.size)
        )
        """Pages of RAM that this process writes for the guest."""

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def view(self, address: int, size: int) -> memoryview:
        """Return the *size* bytes at guest physical *address*, without copying.

        Whoever writes there calls `wrote` afterwards.

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
                self.wrote(view)

    def wrote(self, view: memoryview) -> None:
        """Tell that *view*, of this memory, was written."""
        if len(view):
            with ffi.from_buffer("uint8_t[]", view) as pointer:
                self.dirty.note(pointer, len(view))


def _copy(to: memoryview, source: memoryview) -> None:
    with (
        ffi.from_buffer("uint8_t[]", to, require_writable=True) as target,
        ffi.from_buffer("uint8_t[]", source) as origin,
    ):
        lib.pyvmm_copy(target, origin, len(source))
