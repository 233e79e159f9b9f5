"""Guest memory by the addresses that a vCPU uses, with the cache maintenance that it is owed.

A debugger reads and writes through the host's cacheable mapping. What the guest wrote past the
caches, or is going to read past them, the ledger knows: see `vmm.coherence.ledger`. Code that was
written is made visible to instruction fetches as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.arm64.translation import Mapped, Regime, translate
from vmm.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.coherence.ledger import Ledger
    from vmm.memory import GuestMemory

_PIECE: Final = 4096
"""The smallest page, in bytes: what follows each other in it does so in physical memory, too."""


class DebugMemory:
    """The memory of a machine that stands still.

    memory  what is mapped: RAM and pmem
    ledger  returns which of it is owed maintenance, now
    """

    def __init__(self, memory: GuestMemory, ledger: Callable[[], Ledger]) -> None:
        self._memory = memory
        self._make_ledger = ledger
        self._ledger: Ledger | None = None
        self.physical = False
        """Whether addresses are guest physical ones instead."""

    def forget(self) -> None:
        """Forget the ledger: the machine goes on."""
        self._ledger = None

    def locate(self, regime: Regime, address: int) -> Mapped:
        """Return where *address* is. Raises `TranslationError`, `GuestAddressError`."""
        if self.physical:
            return Mapped(address, 0, 3, 0)
        return translate(regime, self._descriptor, address)

    def _descriptor(self, address: int) -> int:
        return int.from_bytes(self.read_physical(address, 8), "little")

    def read(self, regime: Regime, address: int, size: int) -> bytes:
        """Return up to *size* bytes from *address*: as many as are there before the first gap.

        Raises `GuestError` if there are none.
        """
        out = bytearray()
        try:
            for physical, length in self._pieces(regime, address, size):
                out += self.read_physical(physical, length)
        except GuestError:
            if not out:
                raise
        return bytes(out)

    def write(self, regime: Regime, address: int, data: bytes) -> None:
        """Write *data* to *address*. Raises `GuestError` before anything is written."""
        pieces = list(self._pieces(regime, address, len(data)))
        for physical, length in pieces:
            self._memory.view(physical, length).release()
        at = 0
        for physical, length in pieces:
            self.write_physical(physical, data[at : at + length])
            at += length

    def _pieces(self, regime: Regime, address: int, size: int) -> Iterator[tuple[int, int]]:
        while size > 0:
            length = min(size, _PIECE - address % _PIECE)
            yield self.locate(regime, address).address, length
            address, size = address + length & (1 << 64) - 1, size - length

    def read_physical(self, address: int, size: int) -> bytes:
        """Return the *size* bytes at guest physical *address*. Raises `GuestAddressError`."""
        with self._memory.view(address, size) as view:
            self._owed().before_read(address, view)
            return bytes(view)

    def write_physical(self, address: int, data: bytes) -> None:
        """Write *data*, which may be code, to *address*. Raises `GuestAddressError`."""
        with self._memory.view(address, len(data)) as view:
            self._owed().before_write(address, view)
            view[:] = data
            self._owed().after_write(address, view)
            self._memory.wrote(view)
            with ffi.from_buffer("uint8_t[]", view, require_writable=True) as pointer:
                lib.pyvmm_sync_code(pointer, len(data))

    def _owed(self) -> Ledger:
        if self._ledger is None:
            self._ledger = self._make_ledger()
        return self._ledger
