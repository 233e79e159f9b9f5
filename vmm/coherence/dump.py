"""The kernel's dump of a VM's stage-2 page tables (CONFIG_PTDUMP_STAGE2_DEBUGFS, Linux 6.13).

    0x0000000100000000-0x0000000100200000   2M 2   R W PXNUXN AF BLK
    start                end              size level  attributes; none: a hole

It shows what faults have mapped so far, with adjacent entries of one kind as one line, and goes
with the VM. Source: arch/arm64/kvm/ptdump.c.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.address_range import AddressRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm.kvm.vm import Vm

DEBUGFS: Final = Path("/sys/kernel/debug/kvm")
LAST_LEVEL: Final = 3
"""The level whose entries are pages."""


class Span(NamedTuple):
    """Guest physical *addresses* mapped by entries of one level with the same attributes."""

    addresses: AddressRange
    level: int
    attributes: str

    def block(self, page: int = mmap.PAGESIZE) -> int:
        """Return how many bytes one entry maps: a page has room for page / 8 entries."""
        entries: int = (page // 8) ** (LAST_LEVEL - self.level)
        return page * entries


def open_file(vm: Vm) -> int:
    """Open the dump of *vm*, and return the descriptor. Raises OSError."""
    path = DEBUGFS / f"{os.getpid()}-{vm.fileno()}" / "stage2_page_tables"
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read(vm: Vm, opener: Callable[[Vm], int] = open_file) -> list[Span] | None:
    """Return what stage 2 maps for *vm*; None if the kernel has no dump, or it is not readable.

    *opener* does what `open_file` does.
    """
    try:
        with os.fdopen(opener(vm)) as file:
            return list(parse(file))
    except OSError:
        return None


def parse(lines: Iterable[str]) -> Iterator[Span]:
    """Yield the spans that the lines of a dump describe."""
    for line in lines:
        span, *columns = line.split() or [""]
        start, _, end = span.partition("-")
        if len(columns) > 2 and end:  # size and level only: a hole
            try:
                addresses = AddressRange.to(int(start, 16), int(end, 16))
                yield Span(addresses, int(columns[1]), " ".join(columns))
            except ValueError:
                continue  # a heading


def blocks(spans: Iterable[Span], addresses: AddressRange) -> dict[int, int]:
    """Return how many bytes of *addresses* are mapped by blocks of each size, largest first."""
    found: dict[int, int] = {}
    for span in spans:
        if size := span.addresses.intersection(addresses):
            found[span.block()] = found.get(span.block(), 0) + size
    return dict(sorted(found.items(), reverse=True))
