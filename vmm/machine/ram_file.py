"""Guest RAM in a file that is as long as RAM, and sparse: zeroes take no space."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Generator

    from vmm.coherence.ledger import Ledger
    from vmm.memory import Region

PIECE: Final = 1 << 20
"""Bytes that are looked at, and written, at a time."""


def write_ram(fd: int, ram: Region, ledger: Ledger) -> Generator[None, None, None]:
    """Write *ram* to the file *fd*, as long as RAM, in parts. Raises OSError.

    Nobody else writes *ram* meanwhile. The cache maintenance that *ledger* owes it is done.
    """
    os.ftruncate(fd, 0)
    os.ftruncate(fd, ram.size)
    for offset in range(0, ram.size, PIECE):
        with ram.view[offset : offset + PIECE] as piece:
            ledger.before_read(ram.base + offset, piece)
            if not _is_zero(piece):
                os.pwrite(fd, piece, offset)
        yield


def _is_zero(piece: memoryview) -> bool:
    with ffi.from_buffer("uint8_t[]", piece) as pointer:
        return bool(lib.pyvmm_zero_prefix(pointer, len(piece)) == len(piece))
