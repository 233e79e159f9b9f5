"""``--bar``: one region of a VFIO device in the guest physical address space."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.config.bdf import parse_bdf
from vmm.config.option import choice, parse_keys, split
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


class BarConfig(NamedTuple):
    """One region of a VFIO device in the guest physical address space.

    base   guest physical address; None: above RAM
    cache  auto, require or forbid: see `vmm.coherence.policy`
    """

    bdf: str
    region: int
    base: int | None = None
    cache: str = "auto"


BAR: Final = re.compile(r"([^@]*):(\d+)(?:@(\w+))?")
CACHE_CHOICES: Final = ("auto", "require", "forbid")


def parse_bar(text: str) -> BarConfig:
    """Parse ``BDF:REGION[@GPA][,cache=...]``. Raises `UserError`."""
    place, *parts = split(text.strip())
    match = BAR.fullmatch(place)
    if match is None:
        raise UserError(
            f"--bar: {text!r} is not BDF:REGION[@GPA][,cache=auto|require|forbid]",
            "write 0000:01:00.0:4@0x100000000,cache=require",
        )
    bdf, region, base = match.groups()
    usage = f"cache is {'|'.join(CACHE_CHOICES)}"
    found = parse_keys(f"--bar {text}", parts, {"cache": choice(*CACHE_CHOICES)}, usage)
    try:
        address = None if base is None else int(base, 0)
    except ValueError as error:
        raise UserError(f"--bar {text}: {base!r} is not an address", "write 0x...") from error
    return BarConfig(parse_bdf(bdf, "--bar"), int(region), address, **found)


def check_bars(bars: Sequence[BarConfig]) -> None:
    """Raise `UserError` if two of *bars* have one guest physical address."""
    seen: dict[int, BarConfig] = {}
    for bar in bars:
        if bar.base is not None and (other := seen.setdefault(bar.base, bar)) is not bar:
            raise UserError(
                f"--bar {bar.bdf}:{bar.region}: {bar.base:#x} is the address of "
                f"--bar {other.bdf}:{other.region}, too",
                "leave one of the addresses out, or use another",
            )
