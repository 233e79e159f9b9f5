"""The kernel's dump of stage-2 tables, as text."""

from __future__ import annotations

from vmm.address_range import AddressRange
from vmm.coherence.dump import Span, blocks, parse

PLAIN = """\
---[ Guest IPA ]---
0x0000000000000000-0x0000000040000000           1G 1
0x0000000040000000-0x0000000040200000           2M 2   R W px ux  AF BLK
0x0000000040200000-0x0000000080000000        1022M 2
0x0000000100000000-0x0000000100003000          12K 3   R W PXNUXN AF
0x0000008000000000-0x0000008080000000           2G 1   R W PXNUXN AF BLK MEM/NORMAL-NC
"""
MIB, GIB = 1 << 20, 1 << 30
NOWHERE = AddressRange(0, 0)


def test_spans_are_what_has_attributes() -> None:
    assert [(span.addresses, span.level) for span in parse(PLAIN.splitlines())] == [
        ((0x4000_0000, 0x20_0000), 2),
        ((0x1_0000_0000, 0x3000), 3),
        ((0x80_0000_0000, 0x8000_0000), 1),
    ]


def test_a_level_is_a_size_of_block_that_depends_on_the_page() -> None:
    sizes = [Span(NOWHERE, level, "").block(4096) for level in (1, 2, 3)]
    assert sizes == [GIB, 2 * MIB, 4096]
    assert [Span(NOWHERE, level, "").block(65536) for level in (2, 3)] == [512 * MIB, 65536]


def test_blocks_are_counted_within_a_range() -> None:
    spans = list(parse(PLAIN.splitlines()))
    page = Span(NOWHERE, 3, "").block()
    assert blocks(spans, AddressRange(0x1_0000_1000, 0x1000)) == {page: 0x1000}
    assert blocks(spans, AddressRange(0x80_0000_0000, GIB)) == {spans[2].block(): GIB}
    assert blocks(spans, AddressRange(0, 1 << 48)) == {
        spans[2].block(): 2 * GIB,
        spans[0].block(): 2 * MIB,
        page: 0x3000,
    }
    assert not blocks(spans, AddressRange(0x2000_0000, 0x1000_0000))
