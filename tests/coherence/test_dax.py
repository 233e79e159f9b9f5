"""A DAX file is a guest's memory only where a scratch guest has proved it cacheable."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from vmm.coherence import dax
from vmm.coherence.verdict import MemoryType, Verdict
from vmm.errors import HostError

CACHEABLE = (MemoryType.FORCED_WRITE_BACK, MemoryType.GUEST_DECIDES)


@pytest.mark.parametrize("kind", MemoryType)
def test_only_cacheable_memory_is_let_through(kind: MemoryType) -> None:
    verdict = Verdict(kind, ("as it was seen",))
    if kind in CACHEABLE:
        dax.judge("--pmem file", verdict)
    elif kind is MemoryType.UNDECIDABLE:
        with pytest.raises(HostError, match=r"^--pmem file: .*DAX.*cannot be told.*as it was seen"):
            dax.judge("--pmem file", verdict)
    else:
        with pytest.raises(HostError, match=r"^--pmem file: .*DAX.*as it was seen"):
            dax.judge("--pmem file", verdict)


PAGE = mmap.PAGESIZE
WRITTEN, UNWRITTEN, DELAYED, INLINE = 0, 0x800, 0x4, 0x200


@pytest.mark.parametrize(
    ("found", "page"),
    [
        ([], None),
        ([(0, PAGE, WRITTEN)], 0),
        ([(0, PAGE, WRITTEN | dax.LAST | dax.MERGED | dax.SHARED)], 0),
        ([(0, PAGE, UNWRITTEN), (3 * PAGE, PAGE, WRITTEN)], 3 * PAGE),
        ([(0, PAGE, DELAYED), (PAGE, PAGE, INLINE)], None),
        ([(512, PAGE, WRITTEN)], None),
        ([(512, 2 * PAGE, WRITTEN)], PAGE),
        ([(0, PAGE // 2, WRITTEN)], None),
        ([(8 * PAGE, PAGE, WRITTEN)], None),
    ],
)
def test_only_a_whole_page_with_written_blocks_is_a_proof(
    found: list[dax.Extent], page: int | None
) -> None:
    assert dax.page_with_blocks(found, 8 * PAGE) == page


def need_fiemap(fd: int) -> None:
    try:
        list(dax.extents(fd))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this file system has no FIEMAP")


def test_a_file_is_asked_for_its_extents(tmp_path: Path) -> None:
    """A hole, a part that is only allocated, and a part that is written, page by page."""
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.truncate(8 * PAGE)
        need_fiemap(file.fileno())
        assert dax.page_with_blocks(dax.extents(file.fileno()), 8 * PAGE) is None
        os.posix_fallocate(file.fileno(), 2 * PAGE, 4 * PAGE)
        with mmap.mmap(file.fileno(), 8 * PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
            assert mapping[2 * PAGE] == 0  # a page of zeroes is in the cache now
        assert dax.page_with_blocks(dax.extents(file.fileno()), 8 * PAGE) is None
        os.pwrite(file.fileno(), b"x", 5 * PAGE)
        assert dax.page_with_blocks(dax.extents(file.fileno()), 8 * PAGE) == 5 * PAGE


def test_more_extents_than_one_call_returns_are_all_seen(tmp_path: Path) -> None:
    count = 3 * dax.AT_ONCE
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.truncate(2 * count * PAGE)
        need_fiemap(file.fileno())
        for number in range(count):
            os.pwrite(file.fileno(), b"x", 2 * number * PAGE)
        found = [logical for logical, _, _ in dax.extents(file.fileno())]
    assert found == [2 * number * PAGE for number in range(count)]
