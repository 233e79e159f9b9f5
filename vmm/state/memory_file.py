"""Guest RAM in a sparse file: written without a copy through Python, mapped back lazily.

    write   RAM --(the cache maintenance that is owed)--> runs of pages that are not zero --> file
    map     file --private mapping--> RAM: a page is read when it is first touched

Byte 0 of the file is the first byte of RAM. Zeroes are holes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.coherence.ledger import Maintenance

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from vmm.coherence.ledger import Ledger
    from vmm.memory import Region

PIECE: Final = 8 << 20
"""Bytes that are looked at at a time."""

DURABLE: Final = 8 * PIECE
"""Bytes that are written before the disk is waited for: a loop stands still meanwhile."""

PAGE: Final = 4096
"""Bytes of a page here, whatever the size of the host's: the checksum goes by it."""

RUNS: Final = 512
"""Runs of pages that one look may find."""


class Written(NamedTuple):
    """What was written: bytes that are not in holes, their checksum, and the maintenance done.

    sha256      over each run: its offset and size, eight bytes each, little-endian, then its bytes
    maintained  bytes that were cleaned and invalidated before they were read
    """

    stored: int
    sha256: str
    maintained: int


def write(fd: int, ram: Region, ledger: Ledger) -> Generator[None, None, Written]:
    """Write *ram*, which no vCPU and no device changes, to the empty file *fd*; make it durable.

    In parts: each looks at `PIECE` bytes, and no part has more than `DURABLE` to make durable.

    Does the cache maintenance that *ledger* owes *ram*. Raises OSError.
    """
    os.ftruncate(fd, ram.size)
    checksum, stored, maintained, synced = hashlib.sha256(), 0, 0, 0
    owes = ledger.find(ram.base).maintenance is Maintenance.CLEAN_AND_INVALIDATE
    for start in range(0, ram.size, PIECE):
        with ram.view[start : start + PIECE] as piece:
            ledger.before_read(ram.base + start, piece)
            maintained += len(piece) if owes else 0
            for offset, size in _runs(piece):
                with piece[offset : offset + size] as run:
                    _put(fd, run, start + offset)
                    _update(checksum, start + offset, run)
                stored += size
        if stored - synced >= DURABLE:
            os.fsync(fd)
            synced = stored
        yield
    os.fsync(fd)
    return Written(stored, checksum.hexdigest(), maintained)


def _put(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _update(checksum: hashlib._Hash, offset: int, data: memoryview) -> None:
    checksum.update(offset.to_bytes(8, "little") + len(data).to_bytes(8, "little"))
    checksum.update(data)


def _runs(piece: memoryview) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each run of pages of *piece* that are not all zero."""
    pages = -(-len(piece) // PAGE)
    bitmap = ffi.new("uint64_t[]", -(-pages // 64))
    with ffi.from_buffer("uint8_t[]", piece) as pointer:
        lib.pyvmm_nonzero_pages(pointer, pages, PAGE, bitmap)
    at, runs = ffi.new("uint64_t *"), ffi.new("uint64_t[]", 2 * RUNS)
    while count := lib.pyvmm_bitmap_runs(bitmap, pages, at, runs, RUNS):
        for index in range(count):
            yield runs[2 * index] * PAGE, runs[2 * index + 1] * PAGE


def checksum_of(fd: int, size: int) -> str:
    """Return `Written.sha256` of the file *fd* as it is. Raises OSError.

    Reads all of it that is not a hole: a restore does not wait for that.
    """
    checksum = hashlib.sha256()
    with (
        mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapping,
        memoryview(mapping) as all_,
    ):
        for start in range(0, size, PIECE):
            with all_[start : start + PIECE] as piece:
                for offset, length in _runs(piece):
                    with piece[offset : offset + length] as run:
                        _update(checksum, start + offset, run)
    return checksum.hexdigest()
