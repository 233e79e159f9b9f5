"""A bank of NOR flash, 32 bits wide: two chips of 16 bits side by side.

    COMMAND --40 10--> PROGRAM ------------------------------------.   each arrow is a store
       ^    --E8-----> COUNT --> BUFFER, n times --> CONFIRM --D0--|
       |    --20-----> ERASE --D0----------------------------------|
       |    --60-----> LOCK --01 D0--------------------------------|
       '-----------------------------------------------------------'

    loads see   FF: ARRAY, the contents   70, or any setup: STATUS   90: ID   98: QUERY

In array mode, which is ARRAY and COMMAND, loads need no exit. Stores, and loads in other modes,
come here. Programming clears bits; erasing sets all bits of a block. Both are done when the store
returns, so the chips are always ready, and there is nothing to suspend.

In the device tree this is "cfi-flash" with a bank width of 4. The chips work in step: edk2 and
Linux send each command to both at once. So the lowest byte of a store, whatever its width, is the
command, and both chips answer the same. U-Boot takes the bank for one chip of 16 bits with every
other word left out, and works, as it does in QEMU.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

from vmm.devices.cfi import (
    BLOCK_WORDS,
    BLOCKS,
    BUFFER_WORDS,
    CLEAR_LOCK,
    CLEAR_STATUS,
    COMMANDS,
    CONFIRM,
    IDENTIFIERS,
    LOCK,
    QUERY,
    SET_LOCK,
    UNLOCK,
    WORD,
    Cycle,
    Status,
    View,
)
from vmm.events import Bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.events import Events

WIDTH: Final = 2 * WORD
"""Bytes."""
BLOCK: Final = WIDTH * BLOCK_WORDS
"""Bytes of an erase block: 256 KiB."""
SIZE: Final = BLOCKS * BLOCK
"""Bytes of guest physical address space: 64 MiB."""


class Store(Protocol):
    """Storage for the `SIZE` bytes of a bank."""

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*."""

    def write(self, offset: int, data: bytes) -> None:
        """Write *data* at *offset*, durably. Raises OSError, with nothing changed."""


class CfiFlash:
    """A bank, as a bus device. Events call it *name*.

    ``on_array(bool)`` is called when array mode begins and ends, with the device's lock held: the
    machine may then map the store's bytes into the guest. All blocks of a *read_only* bank stay
    locked.
    """

    def __init__(self, name: str, store: Store, events: Events, *, read_only: bool = False) -> None:
        self.name = name
        self._store = store
        self._events = Bounded(events)
        self._read_only = read_only
        self._lock = Lock()
        self._array = True
        self.on_array: Callable[[bool], object] = lambda _array: None
        self._steps: dict[Cycle, Callable[[int, int, int], None]] = {
            Cycle.COMMAND: self._command,
            Cycle.PROGRAM: self._program,
            Cycle.COUNT: self._count,
            Cycle.BUFFER: self._fill,
            Cycle.CONFIRM: self._confirm,
            Cycle.ERASE: self._erase,
            Cycle.LOCK: self._change_lock,
        }
        self._power_on()

    def _power_on(self) -> None:
        self._view = View.ARRAY
        self._cycle = Cycle.COMMAND
        self._status = Status.READY
        self._locked: set[int] = set()
        self._block = 0  # what is being programmed
        self._left = 0  # stores until the buffer is complete
        self._buffer: dict[int, int] = {}  # bytes, by offset

    def reset(self) -> None:
        """Do what the reset input does: enter array mode, and open all locks."""
        with self._lock:
            self._power_on()
            self._announce()

    # Guest side

    def read(self, offset: int, size: int) -> int:
        """Return the value that the guest's load gets."""
        with self._lock:
            if self._view is View.ARRAY:
                return int.from_bytes(self._store.read(offset, size), "little")
            answer = self._answer(offset // WIDTH).to_bytes(WORD, "little")
        first = offset % WORD
        return int.from_bytes((answer * (size // WORD + 1))[first : first + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Handle a store: a command, or an operand of one."""
        with self._lock:
            self._steps[self._cycle](offset, size, value)
            self._announce()

    def _announce(self) -> None:
        array = self._view is View.ARRAY and self._cycle is Cycle.COMMAND
        if array != self._array:
            self._array = array
            self.on_array(array)

    def _answer(self, address: int) -> int:
        """Return the word that each chip returns at *address*, outside array mode."""
        block, within = divmod(address, BLOCK_WORDS)
        match self._view:
            case View.QUERY:
                return QUERY.get(within, 0)
            case View.ID:
                return int(self._is_locked(block)) if within == LOCK else IDENTIFIERS.get(within, 0)
            case _:
                return int(self._status)

    # Commands and their operands

    def _command(self, offset: int, _size: int, value: int) -> None:
        command = value & 0xFF
        if command == CLEAR_STATUS:
            self._status = Status.READY
        elif command in COMMANDS:
            self._view, self._cycle = COMMANDS[command]
            self._block = offset // BLOCK
        elif command not in UNLOCK:
            self._report("flash-bad-command", offset=offset, command=command)

    def _program(self, offset: int, size: int, value: int) -> None:
        self._cycle = Cycle.COMMAND
        self._change(dict(enumerate(value.to_bytes(size, "little"), offset)))

    def _count(self, _offset: int, _size: int, value: int) -> None:
        count = (value & 0xFFFF) + 1
        if count > BUFFER_WORDS:
            self._sequence_error(f"{count} words for a buffer of {BUFFER_WORDS}")
        else:
            self._left, self._buffer, self._cycle = count, {}, Cycle.BUFFER

    def _fill(self, offset: int, size: int, value: int) -> None:
        self._buffer.update(enumerate(value.to_bytes(size, "little"), offset))
        self._left -= 1
        if not self._left:
            self._cycle = Cycle.CONFIRM

    def _confirm(self, _offset: int, _size: int, value: int) -> None:
        # At any address: edk2 confirms at the start of the bank.
        buffer, self._buffer = self._buffer, {}
        if value & 0xFF != CONFIRM:
            self._sequence_error("a buffer that is not confirmed")
        elif {min(buffer) // BLOCK, max(buffer) // BLOCK} != {self._block}:
            self._sequence_error("a buffer for another block")
        else:
            self._cycle = Cycle.COMMAND
            self._change(buffer)

    def _change(self, wanted: dict[int, int]) -> None:
        """Clear the bits that are 0 in *wanted*, which has bytes by offset."""
        start, end = min(wanted), max(wanted) + 1
        # An unaligned store may reach into the next block.
        if self._is_locked(start // BLOCK) or self._is_locked((end - 1) // BLOCK):
            self._status |= Status.LOCKED | Status.PROGRAM_ERROR
            return
        data = bytearray(self._store.read(start, end - start))
        for offset, byte in wanted.items():
            data[offset - start] &= byte
        self._save(start, bytes(data), Status.PROGRAM_ERROR)

    def _erase(self, offset: int, _size: int, value: int) -> None:
        block = offset // BLOCK
        if value & 0xFF != CONFIRM:
            self._sequence_error("an erasure that is not confirmed")
            return
        self._cycle = Cycle.COMMAND
        if self._is_locked(block):
            self._status |= Status.LOCKED | Status.ERASE_ERROR
        else:
            self._save(block * BLOCK, b"\xff" * BLOCK, Status.ERASE_ERROR)

    def _change_lock(self, offset: int, _size: int, value: int) -> None:
        wanted, block = value & 0xFF, offset // BLOCK
        self._cycle = Cycle.COMMAND
        if wanted == SET_LOCK:
            self._locked.add(block)
        elif wanted != CLEAR_LOCK:
            self._sequence_error("neither lock nor unlock")
        elif self._read_only:
            self._status |= Status.LOCKED | Status.ERASE_ERROR
        else:
            self._locked.discard(block)

    def _is_locked(self, block: int) -> bool:
        return self._read_only or block in self._locked

    def _save(self, offset: int, data: bytes, failure: Status) -> None:
        try:
            self._store.write(offset, data)
        except OSError as error:
            self._status |= failure
            reason = os.strerror(error.errno or 0)
            self._report("flash-write-failed", offset=offset, error=reason)

    def _sequence_error(self, what: str) -> None:
        self._cycle = Cycle.COMMAND
        self._status |= Status.SEQUENCE_ERROR
        self._report("flash-bad-sequence", what=what)

    def _report(self, event: str, **fields: object) -> None:
        self._events.emit(event, flash=self.name, **fields)
