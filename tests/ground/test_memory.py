"""Guest memory: one door, which checks the whole range."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm._native import ffi, lib
from vmm.errors import GuestAddressError, HostError
from vmm.memory import BULK, HUGE_PAGE, Backing, GuestMemory, Mapping, Region

BASE = 0x4000_0000
F_SEAL_FUTURE_WRITE = 0x10  # <linux/fcntl.h>; Python has no name for it before 3.14

Maker = Callable[[int], Mapping]
MAKERS: list[Maker] = [Mapping.anonymous, Mapping.memfd]


def memory(*sizes: int) -> GuestMemory:
    gap, regions, base = 4096, [], BASE
    for size in sizes:
        regions.append(Region(base, memoryview(bytearray(size))))
        base += size + gap
    return GuestMemory(regions)


def test_what_is_written_is_read() -> None:
    ram = memory(4096)
    ram.write(BASE + 4092, b"abcd")
    assert ram.read(BASE + 4092, 4) == b"abcd"


@pytest.mark.parametrize(
    ("address", "size"),
    [(BASE + 4093, 4), (BASE - 1, 1), (BASE, 4097), (0, 1), (BASE, -1), (2**64, 1)],
)
def test_the_whole_range_must_be_memory(address: int, size: int) -> None:
    with pytest.raises(GuestAddressError, match="are not guest memory"):
        memory(4096).view(address, size)


def test_a_refused_write_writes_nothing() -> None:
    ram = memory(4096, 4096)
    with pytest.raises(GuestAddressError):
        ram.write(BASE + 4000, bytes([1]) * 200)
    assert ram.read(BASE, 4096) == bytes(4096)


@given(st.integers(-10, 9000), st.integers(-5, 9000))
def test_views_never_leave_their_region(offset: int, size: int) -> None:
    ram = memory(4096, 4096)
    starts = (0, 8192)
    inside = size >= 0 and any(s <= offset and offset + size <= s + 4096 for s in starts)
    try:
        view = ram.view(BASE + offset, size)
    except GuestAddressError:
        assert not inside
    else:
        assert inside
        assert len(view) == size


@pytest.mark.parametrize("make", MAKERS)
def test_bulk_copies_are_whole(make: Maker) -> None:
    with make(4 * HUGE_PAGE) as mapping:
        ram = GuestMemory([mapping.region(BASE)])
        data = bytes(range(256)) * (BULK // 128)
        ram.write(BASE + 5, data)
        assert ram.read(BASE + 5, len(data)) == data
        mapping.discard()
        assert ram.read(BASE, BULK) == bytes(BULK)


@pytest.mark.parametrize("make", MAKERS)
def test_large_mappings_start_where_huge_pages_can(make: Maker) -> None:
    with make(4 * HUGE_PAGE) as mapping:
        assert mapping.region(0).host_address % HUGE_PAGE == 0
        assert mapping.region(0).offset % HUGE_PAGE == 0
        assert len(mapping.view) == 4 * HUGE_PAGE


@pytest.mark.parametrize("make", MAKERS)
def test_too_much_memory_is_one_clear_error(make: Maker) -> None:
    with pytest.raises(HostError, match=r"cannot map .* MiB of guest memory"):
        make(1 << 60)


@pytest.mark.parametrize("make", MAKERS)
def test_memory_stays_mapped_while_a_region_shows_it(make: Maker) -> None:
    mapping = make(mmap.PAGESIZE)
    region = mapping.region(0)
    assert region.host_address % mmap.PAGESIZE == 0
    mapping.close()
    mapping.close()
    with pytest.raises(ValueError, match="released"):
        region.view[0]


def test_others_see_what_is_in_a_memfd() -> None:
    with Mapping.memfd(4 * HUGE_PAGE) as mapping:
        region = mapping.region(BASE)
        ram = GuestMemory([region])
        assert region.backing is Backing.MEMFD
        ram.write(BASE + 3 * HUGE_PAGE, b"guest")
        with mmap.mmap(region.fd, region.size, offset=region.offset) as theirs:
            assert theirs[3 * HUGE_PAGE :][:5] == b"guest"
            theirs[0:3] = b"abc"
            assert ram.read(BASE, 3) == b"abc"
            mapping.discard()
            assert theirs[0:3] == bytes(3)


def test_a_memfd_uses_what_was_touched_and_no_more() -> None:
    with Mapping.memfd(1 << 40) as mapping:
        ram = GuestMemory([mapping.region(BASE)])
        assert os.fstat(mapping.fd).st_blocks == 0
        ram.write(BASE + (1 << 39), b"guest")
        assert 0 < os.fstat(mapping.fd).st_blocks * 512 <= HUGE_PAGE
        mapping.discard()
        assert os.fstat(mapping.fd).st_blocks == 0


def test_nobody_can_seal_a_memfd_any_further() -> None:
    """A daemon could forbid writes to those that map it after that."""
    with Mapping.memfd(mmap.PAGESIZE) as mapping:
        for seal in (fcntl.F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, fcntl.F_SEAL_SHRINK):
            with pytest.raises(PermissionError):
                fcntl.fcntl(mapping.fd, fcntl.F_ADD_SEALS, seal)


def test_nobody_can_change_the_size_of_a_memfd() -> None:
    with Mapping.memfd(mmap.PAGESIZE) as mapping:
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(mapping.fd, size)


def test_a_memfd_is_unmapped_when_its_last_view_goes() -> None:
    mapping = Mapping.memfd(3 << 20)
    part = mapping.view[5:10]
    mapping.close()
    assert "memfd:guest" in Path("/proc/self/maps").read_text()
    assert bytes(part) == bytes(5)
    part.release()
    del mapping, part
    assert "memfd:guest" not in Path("/proc/self/maps").read_text()


@given(st.binary(max_size=300), st.integers(0, 300))
def test_the_zero_prefix_ends_at_the_first_byte_that_is_not(tail: bytes, zeroes: int) -> None:
    data = bytes(zeroes) + tail
    expected = len(data) - len(data.lstrip(b"\0"))
    assert lib.pyvmm_zero_prefix(ffi.from_buffer("uint8_t[]", data), len(data)) == expected


@given(st.lists(st.booleans(), max_size=20))
def test_nonzero_pages_are_found(pages: list[bool]) -> None:
    data = bytearray(64 * len(pages))
    for index, used in enumerate(pages):
        data[64 * index + index] = used
    bitmap = bytearray((len(pages) + 63) // 64 * 8)
    count = lib.pyvmm_nonzero_pages(
        ffi.from_buffer("uint8_t[]", data),
        len(pages),
        64,
        ffi.from_buffer("uint64_t[]", bitmap),
    )
    assert count == sum(pages)
    assert [bool(bitmap[n // 8] >> n % 8 & 1) for n in range(len(pages))] == pages


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 5))
def test_runs_of_set_bits_are_complete(bits: list[bool], most: int) -> None:
    words = (len(bits) + 63) // 64
    bitmap = ffi.new("uint64_t[]", max(words, 1))
    for index, bit in enumerate(bits):
        bitmap[index // 64] |= int(bit) << index % 64
    if len(bits) % 64:
        bitmap[words - 1] |= (1 << 63) if len(bits) % 64 < 63 else 0  # past the end: not looked at
    found: list[int] = []
    at, runs = ffi.new("uint64_t *"), ffi.new("uint64_t[]", 2 * most)
    while count := lib.pyvmm_bitmap_runs(bitmap, len(bits), at, runs, most):
        for index in range(count):
            found += range(runs[2 * index], runs[2 * index] + runs[2 * index + 1])
    assert found == [index for index, bit in enumerate(bits) if bit]
    assert lib.pyvmm_bitmap_count(bitmap, len(bits)) == sum(bits)
