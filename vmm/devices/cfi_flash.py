"""A bank of NOR flash as boards have it: two chips of 16 bits side by side, 32 bits wide.

    chip 1    chip 0         array mode      `on_array(True)`:  loads need no exit, stores do
    31 .. 16  15 .. 0        else            `on_array(False)`: loads come here as well

That is what the device tree calls "cfi-flash" with a bank width of 4, and edk2 expects: it sends
each command to both chips at once. Each chip is a state machine of its own here, as on a board,
so that narrow accesses, such as those of who probes for the width, need no rules of their own.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

from vmm.devices.nor_chip import BLOCK_WORDS, BLOCKS, WORD, Cycle, NorChip, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.events import Events

CHIPS: Final = 2
WIDTH: Final = CHIPS * WORD
"""Bytes."""
BLOCK: Final = CHIPS * BLOCK_WORDS * WORD
"""Bytes that are erased at once: 256 KiB."""
SIZE: Final = BLOCKS * BLOCK
"""Bytes of guest physical address space: 64 MiB."""

COMPLAINTS: Final = 100
"""How many events one bank can cause: a hostile guest must not fill the host's disk."""


class Store(Protocol):
    """What keeps a bank's `SIZE` bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there."""

    def write(self, offset: int, data: bytes) -> None:
        """Put it there, and where it lasts. Raises OSError, with nothing changed."""


class Lane:
    """The words of *store* that are chip *number*'s."""

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self._number = number

    def _offset(self, address: int) -> int:
        return address * WIDTH + self._number * WORD

    def read(self, address: int) -> int:
        """Return a word."""
        return int.from_bytes(self._store.read(self._offset(address), WORD), "little")

    def program(self, words: Mapping[int, int]) -> None:
        """Clear the bits of words that are 0 in *words*. Raises OSError, with nothing changed."""
        first, last = self._offset(min(words)), self._offset(max(words))
        data = bytearray(self._store.read(first, last - first + WORD))
        for address, value in words.items():
            at = self._offset(address) - first
            data[at] &= value & 0xFF
            data[at + 1] &= value >> 8
        self._store.write(first, bytes(data))

    def erase(self, block: int) -> None:
        """Set all bits of a block. Raises OSError, with nothing changed."""
        data = bytearray(self._store.read(block * BLOCK, BLOCK))
        for byte in range(WORD):
            data[self._number * WORD + byte :: WIDTH] = b"\xff" * BLOCK_WORDS
        self._store.write(block * BLOCK, bytes(data))


class CfiFlash:
    """A bank, as a bus device: *name* is what events call it.

    `on_array` is told when array mode begins and ends, with the device's lock held; it may read
    what *store* has, and show it to the guest instead.
    """

    def __init__(self, name: str, store: Store, events: Events, *, read_only: bool = False) -> None:
        self._name = name
        self._store = store
        self._events = events
        self._complaints = 0
        self._lock = Lock()
        self._array = True
        self.on_array: Callable[[bool], object] = lambda _array: None
        self._chips = [
            NorChip(Lane(store, number), self._report, read_only=read_only)
            for number in range(CHIPS)
        ]

    def reset(self) -> None:
        """Do what the reset input does: show the array."""
        with self._lock:
            for chip in self._chips:
                chip.reset()
            self._follow()

    def read(self, offset: int, size: int) -> int:
        """Return what a load sees."""
        with self._lock:
            if self._array:
                return int.from_bytes(self._store.read(offset, size), "little")
            value = 0
            first = offset // WORD
            for index in reversed(range(first, -(-(offset + size) // WORD))):
                value = value << 16 | self._chips[index % CHIPS].read(index // CHIPS)
        return value >> 8 * (offset % WORD) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a store: each chip gets its lanes of it, the lowest address first."""
        odd = 8 * (offset % WORD)
        enabled = ((1 << 8 * size) - 1) << odd
        value = value << odd & enabled
        index = offset // WORD
        with self._lock:
            while enabled:
                chip = self._chips[index % CHIPS]
                chip.write(index // CHIPS, value & 0xFFFF, enabled & 0xFFFF)
                index, value, enabled = index + 1, value >> 16, enabled >> 16
            self._follow()

    def _follow(self) -> None:
        array = all(chip.view is View.ARRAY and chip.cycle is Cycle.COMMAND for chip in self._chips)
        if array != self._array:
            self._array = array
            self.on_array(array)

    def _report(self, event: str, **fields: object) -> None:
        if self._complaints < COMPLAINTS:
            self._complaints += 1
            self._events.emit(event, flash=self._name, **fields)
