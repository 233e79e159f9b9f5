"""Answer MMIO accesses in the C run loop, without Python: sinks, shadows, eventfds, interrupts.

cdefs/run.h has the rules. A table is built before any vCPU has it; afterwards only the values of
shadows change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.fd import EventFd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Sink(Closeable):
    """A ring of *size* bytes that guests' stores fill and one thread drains.

    `fileno` is readable while bytes wait; `drain` reads it. With less than *headroom* bytes of room
    the ring counts as full, though it takes that many more. Raises ValueError unless *size* is a
    power of two.
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
        """Return the eventfd that the first byte into an empty ring signals."""
        return self._waiting.fileno()

    def close(self) -> None:
        """Close the eventfd. No vCPU may use this sink any more. Idempotent."""
        self._waiting.close()

    def put(self, byte: int) -> bool:
        """Put one byte; return False if there is no room. Thread-safe."""
        return bool(lib.pyvmm_sink_put(self.c, byte) == 0)

    def full(self) -> bool:
        """Return whether the ring counts as full. If so, a later `drain` calls `on_space`."""
        return bool(lib.pyvmm_sink_full(self.c))

    def take_stores(self, take: bool) -> None:  # noqa: FBT001  (says what, like a setter)
        """Let `ToSink` answers put bytes into it, or leave such stores to Python (the default)."""
        lib.pyvmm_sink_take_stores(self.c, take)

    @property
    def written(self) -> int:
        """How many bytes were ever put."""
        return lib.pyvmm_sink_written(self.c)

    def drain(self, most: int = 1 << 16) -> bytes:
        """Return up to *most* waiting bytes, oldest first. One thread at a time."""
        self._waiting.drain()  # before the ring is read: a later byte signals again
        length = lib.pyvmm_sink_drain(self.c, self._out, min(most, self.c.size), self._was_full)
        data = bytes(ffi.buffer(self._out, length))
        if lib.pyvmm_sink_waiting(self.c):
            self._waiting.signal()
        if self._was_full[0]:
            self.on_space()
        return data


class ToEventfd(NamedTuple):
    """A store to *address* adds one to *eventfd*."""

    address: int
    eventfd: int


class ToSink(NamedTuple):
    """A store to *address* puts its low byte into *sink*, if that takes stores and has room."""

    address: int
    sink: Sink


class Shadow(NamedTuple):
    """A load from *address* returns *value*, which `MmioFastpath.set_value` updates.

    While *sink* is full, the bits *flip_when_full* are inverted.
    """

    address: int
    value: int = 0
    sink: Sink | None = None
    flip_when_full: int = 0


class Unchanged(NamedTuple):
    """A store of *value* to *address* is dropped: the register holds it already."""

    address: int
    value: int


class InterruptStatus(NamedTuple):
    """A load of four bytes from *address* returns the status of *interrupt*.

    *interrupt* is a ``struct pyvmm_interrupt *`` that outlives the table.
    """

    address: int
    interrupt: Any


class InterruptAck(NamedTuple):
    """A store of four bytes to *address* clears its bits in the status of *interrupt*."""

    address: int
    interrupt: Any


Answer = ToEventfd | ToSink | Shadow | Unchanged | InterruptStatus | InterruptAck


class MmioFastpath:
    """A table of addresses that C answers, for `Vcpu.set_answers`."""

    def __init__(self, answers: Sequence[Answer] = ()) -> None:
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
        """Answer these as well. No vCPU may have the table yet."""
        now = [
            answer._replace(value=entry.value) if isinstance(answer, Shadow | Unchanged) else answer
            for answer, entry in zip(self._keep, self._entries, strict=False)
        ]
        self._build([*now, *answers])

    def set_value(self, address: int, value: int) -> None:
        """Change the value of the `Shadow` or `Unchanged` at *address*. Thread-safe.

        Raises ValueError if there is neither.
        """
        found = False
        for index, answer in enumerate(self._keep):
            if isinstance(answer, Shadow | Unchanged) and answer.address == address:
                lib.pyvmm_set_value(ffi.addressof(self._entries, index), value)
                found = True
        if not found:
            raise ValueError(f"neither a shadow nor an unchanged value is at {address:#x}")


class DeviceFastpath:
    """The part of *table* that answers for the device at *base*, whose output goes into *sink*.

    Offsets are from *base*, in bytes. The ``add_`` methods come before any vCPU has the table.
    """

    def __init__(self, table: MmioFastpath, base: int, sink: Sink) -> None:
        self._table = table
        self._base = base
        self._sink = sink

    def add_sink(self, offset: int) -> None:
        """Put stores to *offset* into the sink while it takes stores: see `ToSink`."""
        self._table.add([ToSink(self._base + offset, self._sink)])

    def add_shadow(self, offset: int, value: int, flip_when_full: int) -> None:
        """Answer loads from *offset*: see `Shadow`."""
        self._table.add([Shadow(self._base + offset, value, self._sink, flip_when_full)])

    def add_unchanged(self, offset: int, value: int) -> None:
        """Drop stores to *offset* that change nothing: see `Unchanged`."""
        self._table.add([Unchanged(self._base + offset, value)])

    def set_value(self, offset: int, value: int) -> None:
        """Update the value at *offset*: see `MmioFastpath.set_value`."""
        self._table.set_value(self._base + offset, value)

    def take_stores(self, take: bool) -> None:  # noqa: FBT001  (says what, like a setter)
        """Let the sink take stores, or leave them to Python."""
        self._sink.take_stores(take)


def _fill(entry: Any, answer: Answer) -> None:
    entry.address = answer.address
    entry.eventfd = -1
    match answer:
        case ToEventfd(_, eventfd):
            entry.answer = lib.PYVMM_ANSWER_EVENTFD
            entry.eventfd = eventfd
        case ToSink(_, sink):
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
