"""MSI-X: the table of messages, its masks, and the pending bits (PCI Local Bus 3.0, 6.8.2).

    table    16 bytes a vector: address, data, and a mask bit
    PBA      one bit a vector: it was signalled while masked

Who delivers messages is a `MsiSink`'s business, which hears of every change.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vmm._native import lib

if TYPE_CHECKING:
    from collections.abc import Mapping

ENTRY: Final[int] = lib.PCI_MSIX_ENTRY_SIZE
VECTORS_MAX: Final = 2048


class Message(NamedTuple):
    """A message: *data*, 32 bits, written to *address*."""

    address: int
    data: int


class MsiSink(Protocol):
    """Delivers the messages of one function. Its calls come from vCPU threads, one at a time."""

    def update(self, messages: Mapping[int, Message | None]) -> None:
        """Set the messages of these vectors, from now on; the others are unchanged.

        None: the vector is masked, or MSI-X is off. What it is signalled then stays pending, and
        is sent once it has a message again. A message that cannot be delivered is an event.
        """

    def pending(self, vector: int) -> bool:
        """Tell whether *vector*, which has no message now, was signalled."""


class MsiDelivery(MsiSink, Protocol):
    """A sink whose vectors are signalled by eventfds (`vmm.kvm.irq_routing.FunctionMsis`)."""

    def attach(self, vector: int, fd: int) -> None:
        """Send *vector*'s message whenever eventfd *fd* is signalled, from now on."""

    def detach(self, fd: int) -> None:
        """Send nothing for *fd* any more. Harmless if nothing was attached."""


class Msix:
    """One function's MSI-X state, for *vectors* vectors; `table` and `pba` are bus devices.

    They go into a BAR, at the offsets that `PciFunction.add_msix` writes into the capability.
    """

    def __init__(self, vectors: int, sink: MsiSink) -> None:
        if not 0 < vectors <= VECTORS_MAX:
            raise ValueError(f"MSI-X cannot have {vectors} vectors")
        self.vectors = vectors
        self.table = MsixTable(self)
        self.pba = PendingBits(self)
        self._sink = sink
        self._lock = Lock()
        self._enabled = self._masked = False
        self._entries = bytearray()
        self._sent: dict[int, Message | None] = dict.fromkeys(range(vectors))
        self._clear()

    @property
    def enabled(self) -> bool:
        """Whether MSI-X is enabled: the function then has no INTx."""
        return self._enabled

    @property
    def table_size(self) -> int:
        """Bytes."""
        return ENTRY * self.vectors

    @property
    def pba_size(self) -> int:
        """Bytes."""
        return -(-self.vectors // 64) * 8

    def message(self, vector: int) -> Message | None:
        """Return the message of *vector*; None while it is masked, or MSI-X is off."""
        return self._sent[vector]

    def set_control(self, *, enabled: bool, masked: bool) -> None:
        """Set the two bits of Message Control: MSI-X Enable and Function Mask."""
        with self._lock:
            self._enabled, self._masked = enabled, masked
            self._tell(range(self.vectors))

    def reset(self) -> None:
        """Disable MSI-X and mask all vectors."""
        with self._lock:
            self._clear()
            self._tell(range(self.vectors))

    def entries(self) -> bytes:
        """Return the table."""
        with self._lock:
            return bytes(self._entries)

    def restore(self, entries: bytes, *, enabled: bool, masked: bool) -> None:
        """Take over a table, and the two bits of Message Control. Raises ValueError: its size."""
        if len(entries) != len(self._entries):
            raise ValueError(f"{self.vectors} vectors have no table of {len(entries)} bytes")
        with self._lock:
            self._entries[:] = entries
            self._enabled, self._masked = enabled, masked
            self._tell(range(self.vectors))

    def _clear(self) -> None:
        self._enabled = self._masked = False
        masked = bytes([lib.PCI_MSIX_ENTRY_CTRL_MASKBIT])
        entry = bytes(lib.PCI_MSIX_ENTRY_VECTOR_CTRL) + masked
        self._entries = bytearray(entry.ljust(ENTRY, b"\0") * self.vectors)

    def read(self, offset: int, size: int) -> int:
        """Return bytes of the table."""
        return int.from_bytes(self._entries[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write four or eight aligned bytes of the table; others are undefined, and dropped."""
        if size not in (4, 8) or offset % size or offset + size > len(self._entries):
            return
        with self._lock:
            self._entries[offset : offset + size] = value.to_bytes(size, "little")
            control = offset // ENTRY * ENTRY + int(lib.PCI_MSIX_ENTRY_VECTOR_CTRL)
            self._entries[control] &= lib.PCI_MSIX_ENTRY_CTRL_MASKBIT
            self._entries[control + 1 : control + 4] = bytes(3)  # reserved
            self._tell([offset // ENTRY])

    def pending(self, vector: int) -> bool:
        """Return *vector*'s pending bit."""
        return self._sent[vector] is None and self._sink.pending(vector)

    def _tell(self, vectors: range | list[int]) -> None:
        changed = {
            vector: message
            for vector in vectors
            if (message := self._wanted(vector)) != self._sent[vector]
        }
        if changed:
            self._sent.update(changed)
            self._sink.update(changed)

    def _wanted(self, vector: int) -> Message | None:
        at = ENTRY * vector
        masked = self.read(at + lib.PCI_MSIX_ENTRY_VECTOR_CTRL, 1)
        if masked or self._masked or not self._enabled:
            return None
        return Message(
            self.read(at + lib.PCI_MSIX_ENTRY_LOWER_ADDR, 8),
            self.read(at + lib.PCI_MSIX_ENTRY_DATA, 4),
        )


class MsixTable:
    """The MSI-X table, as a bus device."""

    def __init__(self, msix: Msix) -> None:
        self.read = msix.read
        self.write = msix.write


class PendingBits:
    """The pending bit array, as a bus device."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        """Return eight vectors a byte."""
        first = 8 * offset
        last = min(first + 8 * size, self._msix.vectors)
        return sum(
            1 << vector - first for vector in range(first, last) if self._msix.pending(vector)
        )

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore it: the array is read-only."""
