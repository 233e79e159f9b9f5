"""Read cpio archives in the "newc" format as the kernel does (its buffer-format.rst)."""

from __future__ import annotations

from typing import NamedTuple

HEADER = 110
TRAILER = "TRAILER!!!"


class Entry(NamedTuple):
    """One entry of an archive."""

    name: str
    mode: int
    data: bytes


def entries(archives: bytes) -> list[Entry]:
    """Return the entries of *archives*, one after the other, without those that end them."""
    found: list[Entry] = []
    at = 0
    ended = False
    while at < len(archives):
        assert archives[at : at + 6] == b"070701"
        numbers = [int(archives[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = archives[at + HEADER : at + HEADER + name_size - 1].decode()
        at += (HEADER + name_size + 3) // 4 * 4
        if not (ended := name == TRAILER):
            found.append(Entry(name, mode, archives[at : at + size]))
        at += (size + 3) // 4 * 4
    assert ended
    return found


def files(archives: bytes) -> dict[str, bytes]:
    """Return the data of each entry by its name."""
    return {entry.name: entry.data for entry in entries(archives)}
