"""The ledger for people: any width, devices between the memory, JSON in one style."""

from __future__ import annotations

import re

import pytest

from vmm.arm64 import layout
from vmm.coherence import chart
from vmm.coherence.ledger import Entry
from vmm.coherence.policy import Attribute, Promise, Stage1, Stage2
from vmm.memory import Backing

LONG = "a reason that takes more than one line on most terminals, as reasons do: " * 3


def entry(name: str, base: int, size: int, slot: int | None = 0) -> Entry:
    return Entry(
        name,
        base,
        size,
        Backing.ANONYMOUS,
        Attribute(Stage1.CACHEABLE, LONG),
        Promise(Stage2.GUEST_DECIDES, LONG),
        slot,
    )


ENTRIES = [entry("RAM", layout.RAM, 512 << 20), entry("region 4", 1 << 40, 1 << 34, slot=None)]


@pytest.mark.parametrize("width", [40, 73, 80, 132, 300])
def test_the_table_fits_the_terminal(width: int) -> None:
    lines = chart.table(ENTRIES, layout.REGISTERS, width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert text.count(" ".join(LONG.split())) == 4, "no reason is cut"


def test_the_table_shows_what_the_picture_shows() -> None:
    lines = chart.table(ENTRIES, layout.REGISTERS)
    picture = chart.svg(ENTRIES, layout.REGISTERS)
    for name in (*layout.REGISTERS, "RAM", "region 4"):
        assert any(f"  {name}" in line for line in lines), name
        assert name in picture
    places = [int(found[1], 16) for line in lines if (found := re.match(r"(0x\w+)\.\.", line))]
    assert places == sorted(places)
    assert len(places) == len(ENTRIES) + len(layout.REGISTERS)


def test_a_range_is_its_first_and_its_last_address() -> None:
    (line, *_) = chart.table(ENTRIES[:1])
    assert line == "0x0040000000..0x005fffffff   512 MiB  RAM, slot 0, anonymous"


def test_json_keys_are_words_joined_by_underscores() -> None:
    assert all(re.fullmatch("[a-z0-9_]+", key) for key in ENTRIES[0].as_json())
