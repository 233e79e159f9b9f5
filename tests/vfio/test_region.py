"""Regions read, written and mapped. A memfd stands in for the device's file: it does all three."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recorded import Recorded
from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.errors import UserError
from vmm.events import Events
from vmm.vfio.fd import VfioError, VfioFd
from vmm.vfio.mapping import LARGEST_BLOCK, alignment
from vmm.vfio.region import VfioRegion
from vmm.vfio.region_info import RegionInfo
from vmm.vfio.trap import TrappedRegion

PAGE = mmap.PAGESIZE
OFFSET = 1 << 30
"""Where the region starts in the file."""
SIZE = 4 << 20
FLAGS = lib.VFIO_REGION_INFO_FLAG_READ | lib.VFIO_REGION_INFO_FLAG_WRITE
BDF = "0000:01:00.0"


@pytest.fixture
def file() -> Iterator[VfioFd]:
    fd = os.memfd_create("device")
    os.ftruncate(fd, OFFSET + SIZE)
    with VfioFd(fd, BDF) as file:
        yield file


def make(file: VfioFd, *areas: AddressRange, index: int = 4, flags: int = FLAGS) -> VfioRegion:
    return VfioRegion(BDF, RegionInfo(index, SIZE, OFFSET, flags, areas), file)


@pytest.fixture
def region(file: VfioFd) -> VfioRegion:
    return make(file, AddressRange(0, SIZE))


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:device")


# --- by system call -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_reads_and_writes_are_little_endian(region: VfioRegion, size: int) -> None:
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    region.write(0x100, size, value)
    assert region.read_bytes(0x100, 8) == bytes.fromhex("1122334455667788")[:size].ljust(8, b"\0")
    assert region.read(0x100, size) == value


@pytest.mark.parametrize(("offset", "size"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (1 << 60, 4)])
def test_accesses_past_the_region_reach_no_other(
    region: VfioRegion, offset: int, size: int
) -> None:
    with pytest.raises(UserError, match="region 4"):
        region.read(offset, size)
    with pytest.raises(UserError, match="region 4"):
        region.write(offset, size, 0)


def test_a_short_answer_is_an_error(file: VfioFd, region: VfioRegion) -> None:
    os.ftruncate(file.fileno(), OFFSET + SIZE // 2)
    with pytest.raises(VfioError, match=r"BAR4.*pread.*does not answer"):
        region.read(SIZE // 2, 4)


def test_a_closed_device_is_said(file: VfioFd, region: VfioRegion) -> None:
    file.close()
    with pytest.raises(VfioError, match="the descriptor is closed"):
        region.write(0, 4, 0)


# --- mapped ---------------------------------------------------------------------------------


def test_a_mapping_shows_the_region(region: VfioRegion) -> None:
    with region.map(PAGE, 2 * PAGE) as mapping:
        assert mapping.area == (PAGE, 2 * PAGE)
        mapping.view[:4] = b"here"
        assert region.read_bytes(PAGE, 4) == b"here"
        assert mapped() == 1
    assert mapped() == 0


@pytest.mark.parametrize(
    ("offset", "size"), [(0, SIZE), (PAGE, SIZE - PAGE), (SIZE // 2, SIZE // 2), (PAGE, PAGE)]
)
def test_host_address_and_offset_agree_so_that_blocks_can_be_mapped(
    region: VfioRegion, offset: int, size: int
) -> None:
    with region.map(offset, size) as mapping:
        assert (mapping.host_address - offset) % alignment(size) == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (PAGE, PAGE),
        (3 * PAGE, 2 * PAGE),
        (2 << 20, 2 << 20),
        ((512 << 20) + PAGE, 512 << 20),
        (1 << 30, LARGEST_BLOCK),
        (128 << 30, LARGEST_BLOCK),
    ],
)
def test_alignment_is_the_largest_block_that_fits(size: int, expected: int) -> None:
    assert alignment(size) == expected


def test_without_a_size_all_that_follows_is_mapped(file: VfioFd) -> None:
    region = make(file, AddressRange(0, PAGE), AddressRange(4 * PAGE, 8 * PAGE))
    assert region.check_map() == AddressRange(0, PAGE)
    assert region.check_map(5 * PAGE) == AddressRange(5 * PAGE, 7 * PAGE)


def test_a_region_that_cannot_be_written_is_mapped_read_only(file: VfioFd) -> None:
    region = make(file, AddressRange(0, SIZE), flags=lib.VFIO_REGION_INFO_FLAG_READ)
    with region.map() as mapping:
        assert mapping.view.readonly
        assert " r--s " in next(
            line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:dev" in line
        )


def test_closing_again_does_no_harm_and_a_closed_view_reads_nothing(region: VfioRegion) -> None:
    mapping = region.map()
    mapping.close()
    mapping.close()
    assert mapping.closed
    with pytest.raises(ValueError, match="released"):
        mapping.view[0]


def test_a_view_in_use_keeps_the_mapping_and_is_complained_about(region: VfioRegion) -> None:
    mapping = region.map()
    slice_ = mapping.view[:4]
    with pytest.raises(BufferError, match=r"BAR4.*in use"):
        mapping.close()
    assert bytes(slice_) == bytes(4)
    del slice_
    gc.collect()
    assert mapping.closed
    mapping.close()
    assert mapped() == 0


def test_closing_the_region_unmaps_all(region: VfioRegion) -> None:
    for _ in range(3):
        region.map()
    region.close()
    region.close()
    assert mapped() == 0


def test_mapping_again_and_again_leaves_nothing(region: VfioRegion) -> None:
    for _ in range(100):
        region.map().close()
    assert len(region._mappings) == 1
    assert mapped() == 0


def test_a_refused_mapping_leaves_no_reservation(file: VfioFd) -> None:
    region = VfioRegion(BDF, RegionInfo(0, SIZE, 1 << 62, FLAGS, (AddressRange(0, SIZE),)), file)
    file.close()
    before = len(Path("/proc/self/maps").read_text().splitlines())
    with pytest.raises(VfioError, match=r"BAR0.*mmap\(offset=0, size=0x400000\)"):
        region.map()
    assert len(Path("/proc/self/maps").read_text().splitlines()) == before


# --- refused, and what would be possible ------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size", "what"),
    [
        (1, PAGE, "not a multiple"),
        (0, PAGE - 1, "not a multiple"),
        (0, 0, "makes no sense"),
        (0, -PAGE, "makes no sense"),
        (0, 2 * PAGE, "cannot be mapped"),
        (PAGE, PAGE, "cannot be mapped"),
        (2 * PAGE, None, "cannot be mapped"),
        (64 * PAGE, PAGE, "cannot be mapped"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_what_can(
    file: VfioFd, offset: int, size: int | None, what: str
) -> None:
    region = make(file, AddressRange(0, PAGE), AddressRange(4 * PAGE, PAGE))
    possible = rf"\[0x0, {PAGE:#x}\), \[{4 * PAGE:#x}, {5 * PAGE:#x}\)"
    with pytest.raises(UserError, match=rf"{BDF} region 4 \(BAR4\).*{what}.*{possible}"):
        region.map(offset, size)


@pytest.mark.parametrize(
    ("index", "why"), [(0, "trap accesses"), (6, "trap accesses"), (7, "only be read and written")]
)
def test_a_region_that_is_not_mappable_says_why(file: VfioFd, index: int, why: str) -> None:
    with pytest.raises(UserError, match=why):
        make(file, index=index).map()


# --- trapped --------------------------------------------------------------------------------


def test_a_trapped_region_is_a_bus_device(region: VfioRegion) -> None:
    log = Recorded()
    trapped = TrappedRegion(region, PAGE, PAGE, log)
    trapped.write(8, 4, 0x12345678)
    assert region.read(PAGE + 8, 4) == trapped.read(8, 4) == 0x12345678
    assert log.seen == []


def test_a_device_that_does_not_answer_reads_as_ones_and_is_told_of_once(
    file: VfioFd, region: VfioRegion
) -> None:
    log = Recorded()
    trapped = TrappedRegion(region, 0, PAGE, log)
    file.close()
    assert [trapped.read(0, size) for size in (1, 8)] == [0xFF, 0xFFFF_FFFF_FFFF_FFFF]
    trapped.write(0, 4, 1)
    ((name, fields),) = log.seen
    assert name == "vfio-no-answer"
    assert (fields["device"], fields["region"]) == (BDF, 4)


def test_what_a_trapped_region_says_has_an_end(file: VfioFd, region: VfioRegion) -> None:
    """A guest that switches memory off and on again must not fill the host's disk with it."""
    log = Recorded()
    trap = TrappedRegion(region, 0, SIZE, log)
    for _ in range(1000):
        os.ftruncate(file.fileno(), OFFSET)
        assert trap.read(0, 4) == 0xFFFF_FFFF
        os.ftruncate(file.fileno(), OFFSET + SIZE)
        assert trap.read(0, 4) == 0
    assert log.names() == ["vfio-no-answer"] * 100


def test_a_detached_region_touches_no_descriptor(file: VfioFd, region: VfioRegion) -> None:
    """Its number may be another file's meanwhile."""
    trap = TrappedRegion(region, 0, SIZE, Events())
    trap.write(0, 4, 0x1234_5678)
    trap.detach()
    assert trap.read(0, 4) == 0xFFFF_FFFF
    trap.write(0, 4, 0)
    assert region.read(0, 4) == 0x1234_5678
