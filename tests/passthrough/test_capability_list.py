"""Lists of capabilities, well-formed and not."""

from __future__ import annotations

from vmm._native import lib
from vmm.passthrough.capability_list import (
    CapabilityEntry,
    capabilities,
    extended_capabilities,
    extended_headers,
    links,
)


class Space:
    """Configuration space in which tests build lists."""

    def __init__(self, *listed: tuple[int, int, int], first: int = 0x40) -> None:
        """List the capabilities *listed*: (offset, kind, next)."""
        self.bytes = bytearray(4096)
        self.bytes[lib.PCI_STATUS] = lib.PCI_STATUS_CAP_LIST
        self.bytes[lib.PCI_CAPABILITY_LIST] = first
        for offset, kind, following in listed:
            self.bytes[offset : offset + 2] = bytes([kind, following])

    def extend(self, *listed: tuple[int, int, int]) -> Space:
        for offset, kind, following in listed:
            header = kind | 1 << 16 | following << 20
            self.bytes[offset : offset + 4] = header.to_bytes(4, "little")
        return self

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")


def test_a_device_without_a_list_has_none() -> None:
    space = Space()
    space.bytes[lib.PCI_STATUS] = 0
    assert capabilities(space.read) == []
    assert links(space.read) == {lib.PCI_CAPABILITY_LIST: 0}
    assert extended_headers(space.read, 256) == extended_headers(space.read, 4096) == {}


def test_a_list_ends_where_it_bites_its_tail_or_leaves_its_room() -> None:
    loop = Space((0x40, 1, 0x50), (0x50, 5, 0x40))
    assert capabilities(loop.read) == [CapabilityEntry(1, 0x40), CapabilityEntry(5, 0x50)]
    assert links(loop.read) == {0x34: 0x40, 0x41: 0x50, 0x51: 0}
    assert capabilities(Space(first=0x10).read) == []
    assert capabilities(Space((0xFC, 9, 0), first=0xFF).read) == [CapabilityEntry(9, 0xFC)]


def test_hidden_ones_are_bridged() -> None:
    hidden = int(lib.PCI_CAP_ID_EA)
    space = Space((0x40, hidden, 0x50), (0x50, 5, 0x60), (0x60, hidden, 0x70), (0x70, 1, 0))
    assert links(space.read) == {0x34: 0x50, 0x51: 0x70, 0x71: 0}


def test_extended_lists_likewise() -> None:
    hidden = int(lib.PCI_EXT_CAP_ID_SRIOV)
    space = Space().extend((0x100, 1, 0x140), (0x140, hidden, 0x180), (0x180, 3, 0x100))
    assert [one.offset for one in extended_capabilities(space.read, 4096)] == [0x100, 0x140, 0x180]
    assert extended_headers(space.read, 4096) == {0x100: 0x180_1_0001, 0x180: 0x1_0003}
    only = Space().extend((0x100, hidden, 0))
    assert extended_headers(only.read, 4096) == {0x100: 0}
    assert extended_headers(only.read, 256) == {}
    lost = Space().extend((0x100, 1, 0xFFC), (0xFFC, 3, 0))
    assert extended_headers(lost.read, 4096) == {0x100: 0xFFC_1_0001, 0xFFC: 0x1_0003}
    gone = Space()
    gone.bytes[0x100:0x104] = b"\xff" * 4
    assert extended_capabilities(gone.read, 4096) == []
