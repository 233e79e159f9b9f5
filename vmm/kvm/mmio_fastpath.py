"""What the run loop in C answers by itself, without Python: sinks, shadows and doorbells.

See cdefs/run.h for the rules. A table is built once and given to every vCPU; to change it,
build another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.fd import EventFd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Sink(Closeable):
    """A ring of bytes that guests' stores fill and one thread of ours drains.

    `fileno` is readable while bytes wait; reading it is `drain`'s business.
    With less than *headroom* bytes of room it counts as full, though it takes that many more.
    """

    def __init__(self, size: int = 1 << 16, headroom: int = 32) -> None:
        if size & (size - 1):
            raise ValueError(f"a sink's size is a power of two, not {size}")
        self._waiting = EventFd()
        self._ring = ffi.new("uint8_t[]", size)
        self._out = ffi.new("uint8_t[]", size)
        self._was_full = ffi.new("int *")
        self.c: Any = ffi.new(
            "struct pyvmm_sink *",
            {
                "ring": self._ring,
                "size": size,
                "full_at": size - headroom,
                "eventfd": self._waiting.fileno(),
            },
        )
        self.on_space: Callable[[], None] = lambda: None
        """Called after a drain made room in a ring that somebody had found full."""

    def fileno(self) -> int:
        """Return the eventfd that tells of the first byte."""
        return self._waiting.fileno()

    def close(self) -> None:
        """Close the eventfd. No vCPU may have this sink any more."""
        self._waiting.close()

    def put(self, byte: int) -> bool:
        """Put one byte; False if there is no room. From any thread."""
        return bool(lib.pyvmm_sink_put(self.c, byte) == 0)

    def full(self) -> bool:
        """Tell whether it counts as full; if so, `on_space` will tell when it no longer does."""
        return bool(lib.pyvmm_sink_full(self.c))

    def take_stores(self, take: bool) -> None:  # noqa: FBT001  (says what, like a setter)
        """Let `Store` answers put into it, or not. Not, at first."""
        lib.pyvmm_sink_take_stores(self.c, take)

    @property
    def written(self) -> int:
        """How many bytes were ever taken."""
        count: int = lib.pyvmm_sink_written(self.c)
        return count

    def drain(self, most: int = 1 << 16) -> bytes:
        """Take up to *most* waiting bytes, oldest first. One thread at a time."""
        self._waiting.drain()  # before the ring is read: a later byte signals again
        length = lib.pyvmm_sink_drain(self.c, self._out, min(most, self.c.size), self._was_full)
        data = bytes(ffi.buffer(self._out, length))
        if lib.pyvmm_sink_waiting(self.c):
            self._waiting.signal()
        if self._was_full[0]:
            self.on_space()
        return data


class Doorbell(NamedTuple):
    """A store to *address* adds one to *eventfd*."""

    address: int
    eventfd: int


class Store(NamedTuple):
    """A store to *address* puts its low byte into *sink*, if that takes stores and has room."""

    address: int
    sink: Sink


class Shadow(NamedTuple):
    """A load from *address* sees *value*, kept up to date with `MmioFastpath.set_value`.

    While *sink* is full, the bits *flip_when_full* are inverted.
    """

    address: int
    value: int = 0
    sink: Sink | None = None
    flip_when_full: int = 0


class Unchanged(NamedTuple):
    """A store to *address* of *value* is dropped, for it has that already."""

    address: int
    value: int


class InterruptStatus(NamedTuple):
    """A load of four bytes from *address* sees the status of *interrupt*.

    interrupt  a ``struct pyvmm_interrupt *``, which must outlive the table
    """

    address: int
    interrupt: Any


class InterruptAck(NamedTuple):
    """A store of four bytes to *address* takes its bits from the status of *interrupt*."""

    address: int
    interrupt: Any


Answer = Doorbell | Store | Shadow | Unchanged | InterruptStatus | InterruptAck


class MmioFastpath:
    """A table of addresses that C answers, for `Vcpu.set_answers`."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._build(answers)

    def _build(self, answers: Sequence[Answer]) -> None:
        self._keep = sorted(answers, key=lambda answer: answer.address)
        self._entries = ffi.new("struct pyvmm_answered[]", max(len(self._keep), 1))
        for entry, answer in zip(self._entries, self._keep, strict=False):
            _fill(entry, answer)
        self.c: Any = ffi.new(
            "struct pyvmm_answers *", {"count": len(self._keep), "entries": self._entries}
        )

    def add(self, answers: Sequence[Answer]) -> None:
        """Answer these, too. Before any vCPU has the table."""
        now = [
            answer._replace(value=entry.value) if isinstance(answer, Shadow | Unchanged) else answer
            for answer, entry in zip(self._keep, self._entries, strict=False)
        ]
        self._build([*now, *answers])

    def set_value(self, address: int, value: int) -> None:
        """Change what the `Shadow` or `Unchanged` at *address* holds. From any thread."""
        for index, answer in enumerate(self._keep):
            if isinstance(answer, Shadow | Unchanged) and answer.address == address:
                lib.pyvmm_set_value(ffi.addressof(self._entries, index), value)


def _fill(entry: Any, answer: Answer) -> None:
    entry.address = answer.address
    entry.eventfd = -1
    match answer:
        case Doorbell(_, eventfd):
            entry.answer = lib.PYVMM_ANSWER_DOORBELL
            entry.eventfd = eventfd
        case Store(_, sink):
            entry.answer = lib.PYVMM_ANSWER_SINK
            entry.sink = sink.c
        case Shadow(_, value, sink, flip):
            entry.answer = lib.PYVMM_ANSWER_SHADOW
            entry.value = value
            entry.sink = ffi.NULL if sink is None else sink.c
            entry.flip_when_full = flip
        case Unchanged(_, value):
            entry.answer = lib.PYVMM_ANSWER_UNCHANGED
            entry.value = value
        case InterruptStatus(_, interrupt):
            entry.answer = lib.PYVMM_ANSWER_INTERRUPT_STATUS
            entry.interrupt = interrupt
        case InterruptAck(_, interrupt):
            entry.answer = lib.PYVMM_ANSWER_INTERRUPT_ACK
            entry.interrupt = interrupt
