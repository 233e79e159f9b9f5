"""VFIO_DEVICE_GET_REGION_INFO's answer: struct vfio_region_info and its capability chain."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.errors import UserError
from vmm.vfio.info_caps import InfoCapsError, info_caps
from vmm.vfio.region_info import RegionInfo, region_index

PAGE = 0x1000
RW = lib.VFIO_REGION_INFO_FLAG_READ | lib.VFIO_REGION_INFO_FLAG_WRITE
MMAP = RW | lib.VFIO_REGION_INFO_FLAG_MMAP
CAPS = MMAP | lib.VFIO_REGION_INFO_FLAG_CAPS
SPARSE = lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP
MSIX = lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE
TYPE = lib.VFIO_REGION_INFO_CAP_TYPE
FIXED = 32


def answer(size: int, flags: int, *links: tuple[int, bytes], index: int = 4) -> bytes:
    """Return an answer whose chain is (capability id, data)..."""
    chain = b""
    for number, (id_, data) in enumerate(links):
        after = FIXED + len(chain) + 8 + len(data) if number + 1 < len(links) else 0
        chain += struct.pack("=HHI", id_, 1, after) + data
    first = FIXED if links else 0
    fixed = struct.pack("=4I2Q", FIXED + len(chain), flags, index, first, size, index << 40)
    return fixed + chain


def sparse(*areas: tuple[int, int]) -> tuple[int, bytes]:
    data = struct.pack("=2I", len(areas), 0)
    return SPARSE, data + b"".join(struct.pack("=2Q", *area) for area in areas)


def parse(data: bytes) -> RegionInfo:
    return RegionInfo.parse(data, PAGE)


def test_a_region_is_mapped_whole_without_a_sparse_area() -> None:
    info = parse(answer(0x100000, MMAP))
    assert info.areas == (AddressRange(0, 0x100000),)
    assert (info.index, info.size, info.offset) == (4, 0x100000, 4 << 40)
    assert info.name == "BAR4"
    assert info.readable
    assert info.writable
    assert info.mappable


def test_a_region_without_the_flag_is_not_mapped_whatever_else_it_says() -> None:
    flags = RW | lib.VFIO_REGION_INFO_FLAG_CAPS
    assert not parse(answer(0x100000, flags, sparse((0, 0x1000)))).mappable
    assert not parse(answer(0, MMAP)).mappable


def test_sparse_areas_say_what_can_be_mapped() -> None:
    areas = ((0x4000, 0x2000), (0, 0x1000))
    info = parse(answer(0x8000, CAPS, sparse(*areas)))
    assert info.areas == (AddressRange(0, 0x1000), AddressRange(0x4000, 0x2000))


def test_a_sparse_list_without_areas_maps_nothing() -> None:
    assert not parse(answer(0x8000, CAPS, sparse())).mappable


def test_areas_shrink_to_whole_pages() -> None:
    info = parse(answer(0x8000, CAPS, sparse((0x800, 0x2000), (0x5000, 0x10))))
    assert info.areas == (AddressRange(0x1000, 0x1000),)


def test_a_bar_smaller_than_a_page_is_mapped_as_one() -> None:
    assert parse(answer(0x100, MMAP)).areas == (AddressRange(0, PAGE),)


def test_areas_end_with_the_region() -> None:
    info = parse(answer(0x2000, CAPS, sparse((0, 1 << 40))))
    assert info.areas == (AddressRange(0, 0x2000),)


def test_the_whole_chain_is_read() -> None:
    links = ((MSIX, b""), (0x7777, b"unknown "), (TYPE, struct.pack("=2I", 0x80001234, 5)))
    info = parse(answer(0x1000, CAPS, *links, sparse((0, 0x1000)), index=9))
    assert info.msix
    assert info.type == (0x80001234, 5)
    assert info.areas == (AddressRange(0, 0x1000),)
    assert info.name == "device-specific"


def test_a_chain_without_the_flag_is_not_read() -> None:
    assert not parse(answer(0x1000, MMAP, (MSIX, b""))).msix


@pytest.mark.parametrize(
    ("offset", "what"),
    [(1 << 20, "leads to 0x100000"), (FIXED + 8, "within"), (FIXED + 9, "leads to")],
)
def test_a_chain_that_leaves_the_answer_is_refused(offset: int, what: str) -> None:
    data = bytearray(answer(0x1000, CAPS, (MSIX, b"")))
    struct.pack_into("=I", data, 12, offset)
    with pytest.raises(InfoCapsError, match=what):
        parse(bytes(data))


def test_a_chain_that_bites_its_tail_ends() -> None:
    data = bytearray(answer(0x1000, CAPS, (MSIX, b""), (MSIX, b"")))
    struct.pack_into("=I", data, FIXED + 8 + 4, FIXED)
    with pytest.raises(InfoCapsError, match="comes back to 0x20"):
        parse(bytes(data))


def test_more_areas_than_there_is_room_for_are_refused() -> None:
    count = struct.pack("=2I", 0xFFFFFFFF, 0)
    with pytest.raises(InfoCapsError, match="within a capability"):
        parse(answer(0x1000, CAPS, (SPARSE, count)))


@given(st.binary(max_size=256), st.integers(0, 300), st.integers(0, 1 << 20))
def test_no_answer_makes_us_loop_or_map_outside_the_region(
    chain: bytes, first: int, size: int
) -> None:
    data = struct.pack("=4I2Q", FIXED + len(chain), CAPS, 0, first, size, 0) + chain
    try:
        info = parse(data)
    except InfoCapsError:
        return
    for area in info.areas:
        assert area.size > 0
        assert area.base % PAGE == area.size % PAGE == 0
        assert area.end <= size + -size % PAGE


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 64)), max_size=20))
def test_each_capability_is_seen_once(links: list[tuple[int, int]]) -> None:
    built = answer(0x1000, CAPS, *((id_, bytes(size)) for id_, size in links))
    offset = FIXED if links else 0
    ids = [cap.id for cap in info_caps(built, offset)]
    assert ids == [id_ for id_, _ in links]


@pytest.mark.parametrize(
    ("text", "index"), [("0", 0), ("4", 4), ("BAR4", 4), ("rom", 6), ("config", 7), ("9", 9)]
)
def test_regions_have_numbers_and_names(text: str, index: int) -> None:
    assert region_index(text) == index


@pytest.mark.parametrize("text", ["", "-1", "BAR6", "four", "1.0", "²"])
def test_other_names_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(UserError, match=r"BAR0.*config"):
        region_index(text)
