"""A NOR flash chip with Intel's command set, 16 bits wide: a StrataFlash 28F256J3 of 32 MiB.

    COMMAND --40 10--> PROGRAM ------------------------------------.   each arrow is a store
       ^    --E8-----> COUNT --> BUFFER, n times --> CONFIRM --D0--|
       |    --20-----> ERASE --D0----------------------------------|
       |    --60-----> LOCK --01 D0--------------------------------|
       '-----------------------------------------------------------'

    loads see   FF: ARRAY, the contents   70, or any setup: STATUS   90: ID   98: QUERY

Programming clears bits; erasing sets all those of a block. Either has happened when the store
returns, so the chip is always ready, and there is nothing to suspend.

Sources: Intel's datasheet of the 28F256J3 (commands, status register, identifiers); JEDEC JESD68
(CFI, the query table) and JEP137 (command set 0001). Addresses here are in words of 16 bits.
"""

from __future__ import annotations

import os
from enum import Enum, IntFlag, auto
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WORD: Final = 2
"""Bytes."""
BLOCK_WORDS: Final = 64 << 10
BLOCKS: Final = 256
BUFFER_WORDS: Final = 512
"""What can be programmed at once; the J3 has 16, its successors 512. Each saves exits."""
ERASED: Final = 0xFFFF

MANUFACTURER: Final = 0x0089
DEVICE: Final = 0x001D


class View(Enum):
    """What loads see."""

    ARRAY = auto()
    STATUS = auto()
    ID = auto()
    QUERY = auto()


class Cycle(Enum):
    """What the next store is."""

    COMMAND = auto()
    PROGRAM = auto()
    COUNT = auto()
    BUFFER = auto()
    CONFIRM = auto()
    ERASE = auto()
    LOCK = auto()


class Status(IntFlag):
    """The status register. Errors stay until they are cleared by command."""

    LOCKED = 1 << 1
    PROGRAM_ERROR = 1 << 4
    ERASE_ERROR = 1 << 5
    READY = 1 << 7
    SEQUENCE_ERROR = PROGRAM_ERROR | ERASE_ERROR


CLEAR_STATUS: Final = 0x50
CONFIRM: Final = 0xD0
SET_LOCK: Final = 0x01
CLEAR_LOCK: Final = 0xD0

COMMANDS: Final[Mapping[int, tuple[View, Cycle]]] = {
    0xFF: (View.ARRAY, Cycle.COMMAND),
    0xF0: (View.ARRAY, Cycle.COMMAND),  # AMD's; who probes for a flash sends both
    0x70: (View.STATUS, Cycle.COMMAND),
    0x90: (View.ID, Cycle.COMMAND),
    0x98: (View.QUERY, Cycle.COMMAND),
    0x10: (View.STATUS, Cycle.PROGRAM),
    0x40: (View.STATUS, Cycle.PROGRAM),
    0xE8: (View.STATUS, Cycle.COUNT),
    0x20: (View.STATUS, Cycle.ERASE),
    0x60: (View.STATUS, Cycle.LOCK),
    0xB0: (View.STATUS, Cycle.COMMAND),  # suspend, and
    0xD0: (View.STATUS, Cycle.COMMAND),  # resume: what has ended already
}
"""What they lead to. `CLEAR_STATUS` changes neither."""

EXTENDED: Final = 0x31
"""Where the query table's part about the command set begins."""

QUERY: Final = dict(
    enumerate(
        b"QRY"
        + bytes((0x01, 0x00, EXTENDED, 0x00))  # command set 0001
        + bytes((0x00, 0x00, 0x00, 0x00))  # and no other
        + bytes((0x27, 0x36, 0x00, 0x00))  # supply: 2.7 V to 3.6 V; none for programming
        + bytes((4, 7, 10, 0))  # 2^n us for a word and for a buffer, 2^n ms for a block
        + bytes((4, 4, 4, 0))  # and 2^n times that, at most
        + bytes((25, 0x01, 0x00))  # 2^n bytes, by 16 bits
        + bytes(((BUFFER_WORDS * WORD).bit_length() - 1, 0))  # 2^n bytes to program at once
        + bytes((1, BLOCKS - 1, 0))  # one kind of blocks
        + (BLOCK_WORDS * WORD >> 8).to_bytes(2, "little")
        + b"PRI11"
        + (1 << 5).to_bytes(4, "little")  # each block has a lock that needs no power
        + bytes((0x00, 0x01, 0x00, 0x33, 0x00, 0x00)),  # whose state is one bit
        0x10,
    )
)
"""The query table, by address: CFI's, then the extended one."""


class Cells(Protocol):
    """What keeps a chip's words."""

    def read(self, address: int) -> int:
        """Return a word."""

    def program(self, words: Mapping[int, int]) -> None:
        """Clear the bits of words that are 0 in *words*. Raises OSError, with nothing changed."""

    def erase(self, block: int) -> None:
        """Set all bits of a block. Raises OSError, with nothing changed."""


class NorChip:
    """One chip. It has no lock: whose it is has.

    *report* is called with an event's name and fields for what no driver should do, and for what
    the host fails at. Of a *read_only* chip all blocks are locked, for good.
    """

    def __init__(
        self, cells: Cells, report: Callable[..., None], *, read_only: bool = False
    ) -> None:
        self._cells = cells
        self._report = report
        self._read_only = read_only
        self._steps = {
            Cycle.COMMAND: self._command,
            Cycle.PROGRAM: self._program,
            Cycle.COUNT: self._count,
            Cycle.BUFFER: self._fill,
            Cycle.CONFIRM: self._confirm,
            Cycle.ERASE: self._erase,
            Cycle.LOCK: self._lock,
        }
        self.reset()

    def reset(self) -> None:
        """Do what the reset input does: the array shows, and all locks are open."""
        self.view = View.ARRAY
        self.cycle = Cycle.COMMAND
        self.status = Status.READY
        self._locks: set[int] = set()
        self._block = 0
        self._left = 0
        self._buffer: dict[int, int] = {}

    def is_locked(self, block: int) -> bool:
        """Tell whether *block* can be neither programmed nor erased."""
        return self._read_only or block in self._locks

    def read(self, address: int) -> int:
        """Return what a load of the word at *address* sees."""
        match self.view:
            case View.ARRAY:
                return self._cells.read(address)
            case View.STATUS:
                return int(self.status)
            case View.QUERY:
                return QUERY.get(address % BLOCK_WORDS, 0)
            case View.ID:
                block, offset = divmod(address, BLOCK_WORDS)
                return {0: MANUFACTURER, 1: DEVICE, 2: int(self.is_locked(block))}.get(offset, 0)

    def write(self, address: int, value: int, enabled: int = ERASED) -> None:
        """Take a store to the word at *address*, of which *enabled* says which bits are there."""
        self._steps[self.cycle](address, value | (ERASED & ~enabled), enabled)

    def _command(self, address: int, value: int, enabled: int) -> None:
        if not enabled & 0xFF:
            return  # commands are in the lower half; what is in the other says nothing
        command = value & 0xFF
        if command == CLEAR_STATUS:
            self.status = Status.READY
        elif command in COMMANDS:
            self.view, self.cycle = COMMANDS[command]
            self._block = address // BLOCK_WORDS
        else:
            self._report("flash-bad-command", command=command)

    def _program(self, address: int, value: int, _enabled: int) -> None:
        self.cycle = Cycle.COMMAND
        self._change(address // BLOCK_WORDS, {address: value})

    def _count(self, _address: int, value: int, enabled: int) -> None:
        count = (value & enabled) + 1
        if count > BUFFER_WORDS:
            self._disorder(f"{count} words for a buffer of {BUFFER_WORDS}")
        else:
            self._left, self._buffer, self.cycle = count, {}, Cycle.BUFFER

    def _fill(self, address: int, value: int, _enabled: int) -> None:
        self._buffer[address] = value
        self._left -= 1
        if not self._left:
            self.cycle = Cycle.CONFIRM

    def _confirm(self, _address: int, value: int, enabled: int) -> None:
        if value & enabled & 0xFF != CONFIRM:
            self._disorder("a buffer that is not confirmed")
        elif any(address // BLOCK_WORDS != self._block for address in self._buffer):
            self._disorder("a buffer for more than one block")
        else:
            self.cycle = Cycle.COMMAND
            self._change(self._block, self._buffer)
        self._buffer = {}

    def _change(self, block: int, words: Mapping[int, int]) -> None:
        if self.is_locked(block):
            self.status |= Status.LOCKED | Status.PROGRAM_ERROR
            return
        try:
            self._cells.program(words)
        except OSError as error:
            self.status |= Status.PROGRAM_ERROR
            self._failed(block, error)

    def _erase(self, address: int, value: int, enabled: int) -> None:
        if value & enabled & 0xFF != CONFIRM:
            self._disorder("an erasure that is not confirmed")
            return
        self.cycle = Cycle.COMMAND
        block = address // BLOCK_WORDS
        if self.is_locked(block):
            self.status |= Status.LOCKED | Status.ERASE_ERROR
            return
        try:
            self._cells.erase(block)
        except OSError as error:
            self.status |= Status.ERASE_ERROR
            self._failed(block, error)

    def _lock(self, address: int, value: int, enabled: int) -> None:
        wanted, block = value & enabled & 0xFF, address // BLOCK_WORDS
        self.cycle = Cycle.COMMAND
        if wanted == SET_LOCK:
            self._locks.add(block)
        elif wanted != CLEAR_LOCK:
            self._disorder("neither lock nor unlock")
        elif self._read_only:
            self.status |= Status.LOCKED | Status.ERASE_ERROR
        else:
            self._locks.discard(block)

    def _disorder(self, what: str) -> None:
        self.cycle = Cycle.COMMAND
        self.status |= Status.SEQUENCE_ERROR
        self._report("flash-bad-sequence", what=what)

    def _failed(self, block: int, error: OSError) -> None:
        self._report("flash-write-failed", block=block, error=os.strerror(error.errno or 0))
