"""NOR flash with Intel's command set as tables: commands, status, identifiers, CFI query.

The chip is a StrataFlash 28F256J3, 16 bits wide, with 256 blocks of 128 KiB and the larger buffer
of its successors. Addresses are in words of 16 bits, as in its datasheet.

Sources: Intel's datasheet of the 28F256J3 (commands, status register, identifiers); JEDEC JESD68
(CFI, the query table) and JEP137 (command set 0001).
"""

from __future__ import annotations

from enum import Enum, IntFlag, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

WORD: Final = 2
"""Bytes."""
BLOCK_WORDS: Final = 64 << 10
BLOCKS: Final = 256
BUFFER_WORDS: Final = 512
"""Words that one buffered program command takes. The J3 has 16; more saves exits."""


class View(Enum):
    """What loads return."""

    ARRAY = auto()
    STATUS = auto()
    ID = auto()
    QUERY = auto()


class Cycle(Enum):
    """The meaning of the next store."""

    COMMAND = auto()
    PROGRAM = auto()
    COUNT = auto()
    BUFFER = auto()
    CONFIRM = auto()
    ERASE = auto()
    LOCK = auto()


class Status(IntFlag):
    """The status register. Error bits stay until a command clears them."""

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
    0xF0: (View.ARRAY, Cycle.COMMAND),  # AMD's: drivers that probe send both
    0x70: (View.STATUS, Cycle.COMMAND),
    0x90: (View.ID, Cycle.COMMAND),
    0x98: (View.QUERY, Cycle.COMMAND),
    0x10: (View.STATUS, Cycle.PROGRAM),
    0x40: (View.STATUS, Cycle.PROGRAM),
    0xE8: (View.STATUS, Cycle.COUNT),
    0x20: (View.STATUS, Cycle.ERASE),
    0x60: (View.STATUS, Cycle.LOCK),
    0xB0: (View.STATUS, Cycle.COMMAND),  # suspend, and
    0xD0: (View.STATUS, Cycle.COMMAND),  # resume, of what has ended already
}
"""The view and cycle after each command. `CLEAR_STATUS` changes neither."""

UNLOCK: Final = frozenset((0xAA, 0x55))
"""AMD's unlock cycles. Linux's cfi_probe sends them to any chip that it finds; no effect."""

MANUFACTURER, DEVICE, LOCK = 0, 1, 2
"""Addresses of identifiers. `LOCK` is an address in each block."""
IDENTIFIERS: Final[Mapping[int, int]] = {MANUFACTURER: 0x0089, DEVICE: 0x001D}

EXTENDED: Final = 0x31
"""Address of the extended query table, which describes the command set."""

QUERY: Final[Mapping[int, int]] = dict(
    enumerate(
        b"QRY"
        + bytes((0x01, 0x00, EXTENDED, 0x00))  # command set 0001,
        + bytes((0x00, 0x00, 0x00, 0x00))  # and no other
        + bytes((0x27, 0x36, 0x00, 0x00))  # supply: 2.7 V to 3.6 V; none for programming
        + bytes((4, 7, 10, 0))  # 2^n us for a word and for a buffer, 2^n ms for a block,
        + bytes((4, 4, 4, 0))  # and 2^n times that at most
        + bytes((25, 0x01, 0x00))  # 2^n bytes, 16 at a time
        + bytes(((BUFFER_WORDS * WORD).bit_length() - 1, 0))  # 2^n bytes of buffer
        + bytes((1, BLOCKS - 1, 0))  # one kind of blocks
        + (BLOCK_WORDS * WORD >> 8).to_bytes(2, "little")
        + b"PRI11"
        + (1 << 5).to_bytes(4, "little")  # each block has a lock that is open at power-on,
        + bytes((0x00, 0x01, 0x00, 0x33, 0x00, 0x00)),  # whose state is one bit
        0x10,
    )
)
"""The CFI query table and the extended one, by address."""
