"""The process's mappings as the kernel sees them: /proc/self/smaps.

Source: Documentation/filesystems/proc.rst, VmFlags. ``pf`` is VM_PFNMAP, by which KVM knows device
memory; ``mm`` is VM_MIXEDMAP, which may hold such pages among others. The file does not tell
whether a mapping is cacheable.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from vmm.address_range import AddressRange
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SMAPS: Final = Path("/proc/self/smaps")
HEADER: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+\s*(.*)")


_kept: Final[list[TextIO]] = []


def keep() -> None:
    """Open the file for as long as the process lives: once it is sealed, it opens nothing."""
    if not _kept:
        _kept.append(SMAPS.open())


@dataclass(frozen=True)
class Vma:
    """One mapping: host virtual *addresses*, their attributes, *offset* in bytes in a file."""

    addresses: AddressRange
    permissions: str
    name: str
    flags: frozenset[str]
    offset: int = 0

    @property
    def is_pfnmap(self) -> bool:
        """Whether it maps page frames without struct page (VM_PFNMAP)."""
        return "pf" in self.flags

    @property
    def is_mixedmap(self) -> bool:
        """Whether it may map page frames without struct page among others (VM_MIXEDMAP)."""
        return "mm" in self.flags

    def __str__(self) -> str:
        kind = "memory the kernel manages"
        if self.is_pfnmap or self.is_mixedmap:
            kind = "PFNMAP" if self.is_pfnmap else "MIXEDMAP"
        there = f"{self.addresses.base:#x}-{self.addresses.end:#x}"
        return f"VMA {there} of {self.name or 'anonymous memory'} ({kind})"


def check_file(option: str, host_address: int) -> Vma | None:
    """Return the mapping of a file at *host_address*, or raise `UserError` for device memory.

    A BAR in sysfs is a regular file as well, which the host maps uncached (drivers/pci/mmap.c).
    """
    behind = find(host_address)
    if behind is not None and behind.is_pfnmap:
        raise UserError(
            f"{option}: it is no file but a device's memory: {behind}",
            "give the device to the guest with --vfio or --bar",
        )
    return behind


def parse(lines: Iterable[str]) -> Iterator[Vma]:
    """Yield the mappings that the lines of an smaps file describe."""
    header: re.Match[str] | None = None
    for line in lines:
        if match := HEADER.match(line):
            header = match
        elif header and line.startswith("VmFlags:"):
            start, end, permissions, offset, name = header.groups()
            flags = frozenset(line.split()[1:])
            addresses = AddressRange.to(int(start, 16), int(end, 16))
            yield Vma(addresses, permissions, name.strip(), flags, int(offset, 16))


def find(host_address: int, vmas: Iterable[Vma] | None = None) -> Vma | None:
    """Return the mapping that contains *host_address*, or None."""
    if vmas is None:
        with nullcontext(_kept[0]) if _kept else SMAPS.open() as lines:
            lines.seek(0)
            vmas = list(parse(lines))
    return next((vma for vma in vmas if vma.addresses.contains(host_address)), None)
