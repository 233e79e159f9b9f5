"""``--memory-dump``: the guest's RAM in a file, once the guest has ended.

The file is as long as RAM, and sparse: byte 0 is the first byte of RAM, and zeroes take no space.
It appears whole or not at all, under its own name only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.coherence.ledger import Ledger
    from vmm.memory import Region

PIECE: Final = 1 << 20
"""Bytes that are looked at, and written, at a time."""


class MemoryDump(Closeable):
    """Own the file that will be *path*. Raises `UserError` if there can be none."""

    def __init__(self, path: Path) -> None:
        self._option = f"--memory-dump {path}"
        self._path = path
        try:
            if path.is_dir():
                raise UserError(f"{self._option}: a directory", "name a file")
            self._fd, self._temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise UserError(
                f"{self._option}: {error.strerror}", "name a file in a directory that you can write"
            ) from error

    def write(self, ram: Region, ledger: Ledger) -> None:
        """Write *ram*, whose guest has stopped, with the cache maintenance that *ledger* owes it.

        Raises `HostError`: the disk is full.
        """
        try:
            os.ftruncate(self._fd, ram.size)
            for offset in range(0, ram.size, PIECE):
                with ram.view[offset : offset + PIECE] as piece:
                    ledger.before_read(ram.base + offset, piece)
                    if not _is_zero(piece):
                        os.pwrite(self._fd, piece, offset)
            os.chmod(self._fd, 0o600)  # noqa: PTH101  (a descriptor)
            os.replace(self._temporary, self._path)  # noqa: PTH105  (text)
        except OSError as error:
            raise HostError(f"{self._option}: {error.strerror}", "free some space") from error
        self._temporary = ""

    def close(self) -> None:
        """Close the file; remove it if it was not written. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)  # noqa: PTH108  (text)
            self._temporary = ""


def _is_zero(piece: memoryview) -> bool:
    with ffi.from_buffer("uint8_t[]", piece) as pointer:
        return bool(lib.pyvmm_zero_prefix(pointer, len(piece)) == len(piece))
