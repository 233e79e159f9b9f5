"""Pages of RAM that this process writes for the guest: buffers, rings, a debugger's bytes.

KVM's dirty log has only the stores of the guest and of KVM. Live migration needs both.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

from vmm._native import ffi, lib

SHIFT: Final = mmap.PAGESIZE.bit_length() - 1
"""log2 of the bytes of a page: the host's, as in KVM's dirty log."""


class DirtyPages:
    """Note written pages of the *size* bytes of RAM at *host_address* of this process.

    Nothing is noted before `start`.
    """

    def __init__(self, host_address: int, size: int) -> None:
        self.pages = -(-size >> SHIFT)
        """Pages of RAM."""
        self.c: Any = ffi.new(
            "struct pyvmm_dirty *",
            {"host": ffi.cast("uint8_t *", host_address), "size": size, "shift": SHIFT},
        )
        self._bitmap: Any = None

    def start(self) -> None:
        """Note pages from now on. Nothing may write meanwhile: the machine is paused."""
        self._bitmap = ffi.new("uint64_t[]", -(-self.pages // 64))
        self.c.bitmap = self._bitmap

    def stop(self) -> None:
        """Forget all, and note nothing more. Nothing may write meanwhile. Idempotent."""
        self.c.bitmap, self._bitmap = ffi.NULL, None

    def note(self, pointer: Any, size: int) -> None:
        """Note that the *size* bytes at *pointer* were written."""
        lib.pyvmm_dirty_note(self.c, pointer, size)

    def take(self, into: Any) -> int:
        """Move what was noted to *into*, ``uint64_t *`` with a bit for each page; return how many.

        Thread-safe: a page that is written meanwhile is noted again.
        """
        return int(lib.pyvmm_dirty_take(self.c, into))
