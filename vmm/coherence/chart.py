"""The ledger as a table, and as an SVG of the guest physical (IPA) space."""

from __future__ import annotations

import textwrap
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vmm.coherence.policy import Stage2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm.address_range import AddressRange
    from vmm.coherence.ledger import Entry

UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

COLOURS: Final = {
    Stage2.FORCED_WRITE_BACK: "#2e7d32",
    Stage2.GUEST_DECIDES: "#f9a825",
    Stage2.NON_CACHEABLE: "#1565c0",
    Stage2.UNPROMISED: "#c62828",
    Stage2.NO_SLOT: "#6d4c41",
}
DEVICE_COLOUR: Final = "#9e9e9e"


def human(size: int) -> str:
    """Return *size*, in bytes, in the largest unit that fits; a rounded number has a point."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size // unit} {name}" if size % unit == 0 else f"{size / unit:.1f} {name}"
    return f"{size} B"


WIDE: Final = 100
"""Columns of a table that no terminal shows."""

NO_REGISTERS: Final[Mapping[str, AddressRange]] = MappingProxyType({})


def table(
    entries: Iterable[Entry],
    registers: Mapping[str, AddressRange] = NO_REGISTERS,
    width: int = WIDE,
) -> list[str]:
    """Return the IPA space as lines of at most *width* columns, lowest address first.

    Each range has a line with its addresses, and below it what it was promised, why, and what
    maintenance is owed. *registers* are the devices' register ranges by name.
    """
    found: list[tuple[AddressRange, list[str]]] = []
    for entry in entries:
        slot = "no slot" if entry.slot is None else f"slot {entry.slot}"
        head = f"{_place(entry.addresses)}  {entry.name}, {slot}, {entry.backing.value}"
        facts = (
            ("stage 1", f"{entry.attribute.stage1.value}: {entry.attribute.because}"),
            ("stage 2", f"{entry.promise.stage2.value}: {entry.promise.because}"),
            ("we owe", entry.maintenance.value),
        )
        below = [line for name, text in facts for line in _fact(name, text, width)]
        found.append((entry.addresses, [*_folded(head, width), *below]))
    for name, there in registers.items():
        head = f"{_place(there)}  {name}: trapped"
        found.append((there, _folded(head, width)))
    return [line for _, lines in sorted(found) for line in lines]


def _place(addresses: AddressRange) -> str:
    first, last = addresses.base, addresses.end - 1
    return f"{first:#012x}..{last:#012x} {human(addresses.size):>9}"


def _folded(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), subsequent_indent="  ", break_on_hyphens=False)


def _fact(name: str, text: str, width: int) -> list[str]:
    start = f"  {name:8} "
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
    )


TITLE: Final = "Guest physical memory, and what stage 2 promises"
ROW: Final = 46
WIDTH: Final = 1000
BAR_X: Final = 170
BAR_WIDTH: Final = 150


def svg(entries: Iterable[Entry], registers: Mapping[str, AddressRange] = NO_REGISTERS) -> str:
    """Return an SVG of the IPA space: lowest address at the bottom, not to scale, gaps marked.

    *registers* are the devices' register ranges by name, drawn for orientation.
    """
    items = [(entry.addresses, *_words(entry)) for entry in entries]
    items += [
        (there, DEVICE_COLOUR, name, "device registers: trapped")
        for name, there in registers.items()
    ]
    body: list[str] = []
    y, floor = 40, None
    for addresses, *words in sorted(items, reverse=True):
        if floor is not None and addresses.end < floor:
            body.append(_gap(y, floor - addresses.end))
            y += ROW // 2
        body.append(_range(addresses, *words, y=y))
        floor = addresses.base
        y += ROW
    legend_y = y + 20
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
                f'height="{legend_y + 40}" font-family="sans-serif" font-size="13">'
            ),
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="16" y="24" font-size="16" font-weight="bold">{TITLE}</text>',
            *body,
            *_legend(legend_y),
            "</svg>",
            "",
        ]
    )


def _words(entry: Entry) -> tuple[str, str, str]:
    """Return an entry's colour, and the two lines beside it."""
    slot = "no slot" if entry.slot is None else f"slot {entry.slot}"
    return (
        COLOURS[entry.promise.stage2],
        f"{entry.name}: {entry.promise.stage2.value}",
        f"{slot}, {entry.backing.value}; {entry.promise.because}",
    )


def _range(addresses: AddressRange, colour: str, first: str, second: str, *, y: int) -> str:
    text_x = BAR_X + BAR_WIDTH + 14
    return (
        f'<g><title>{escape(second)}</title><rect x="{BAR_X}" y="{y}" width="{BAR_WIDTH}" '
        f'height="{ROW - 2}" fill="{colour}" rx="3"/>'
        f'<text x="{BAR_X + BAR_WIDTH // 2}" y="{y + 27}" fill="white" text-anchor="middle">'
        f"{human(addresses.size)}</text>"
        f'<text x="{BAR_X - 10}" y="{y + 14}" text-anchor="end" font-family="monospace" '
        f'font-size="12">{addresses.end - 1:#x}</text>'
        f'<text x="{BAR_X - 10}" y="{y + ROW - 8}" text-anchor="end" font-family="monospace" '
        f'font-size="12">{addresses.base:#x}</text>'
        f'<text x="{text_x}" y="{y + 18}" font-weight="bold">{escape(first)}</text>'
        f'<text x="{text_x}" y="{y + 36}" fill="#555">{escape(_cut(second))}</text></g>'
    )


def _gap(y: int, size: int) -> str:
    middle = BAR_X + BAR_WIDTH // 2
    return (
        f'<text x="{middle}" y="{y + 15}" text-anchor="middle" fill="#999">'
        f"&#8942; {human(size)} free</text>"
    )


def _cut(text: str, limit: int = 96) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def _legend(y: int) -> list[str]:
    out, x = [], 16
    for name, colour in [
        *((kind.value, COLOURS[kind]) for kind in COLOURS),
        ("device", DEVICE_COLOUR),
    ]:
        out.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}" rx="2"/>')
        out.append(f'<text x="{x + 20}" y="{y + 12}">{escape(name)}</text>')
        x += 34 + 8 * len(name)
    return out
