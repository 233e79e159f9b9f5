"""Memory between pages that nobody may touch: an access beyond either end is a crash, not luck."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Final

from vmm._native import ffi
from vmm.memory import Mapping, Region

GUARD: Final = mmap.PAGESIZE
NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)

_libc = ctypes.CDLL(None, use_errno=True)


def forbid(address: int, size: int) -> None:
    """Make each access to [address, address + size) a SIGSEGV. Raises OSError."""
    place = ctypes.c_void_p(address)
    if _libc.mprotect(place, ctypes.c_size_t(size), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


class Guarded(Mapping):
    """Guest memory of *size* bytes, whole pages, with a guard page before and one behind it."""

    def __init__(self, size: int) -> None:
        assert size % mmap.PAGESIZE == 0, "guards are pages"
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self._mapping = mmap.mmap(-1, size + 2 * GUARD, flags)
        with ffi.from_buffer("uint8_t[]", self._mapping) as pointer:
            self.address = int(ffi.cast("uintptr_t", pointer)) + GUARD
        forbid(self.address - GUARD, GUARD)
        forbid(self.address + size, GUARD)
        self._whole = memoryview(self._mapping)
        self.view = self._whole[GUARD : GUARD + size]

    def region(self, base: int) -> Region:
        return Region(base, self.view)

    def discard(self) -> None:
        self._mapping.madvise(mmap.MADV_DONTNEED, GUARD, len(self.view))

    def close(self) -> None:
        self.view.release()
        self._whole.release()
        self._mapping.close()


class GuardedArray:
    """An array of C's *kind*, of zeroes, that ends where a guard page begins."""

    def __init__(self, kind: str, count: int) -> None:
        size = ffi.sizeof(kind) * count
        self._mapping = Guarded(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.c: Any = ffi.cast(f"{kind} *", self._mapping.address + len(self._mapping.view) - size)

    def close(self) -> None:
        self._mapping.close()
