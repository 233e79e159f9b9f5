"""``--trace FILE``: what happened when, in Chrome's JSON trace format, which Perfetto opens.

    vCPU threads  --exits-------.
    queue threads --chains------+--> a ring of records each --> Trace.flush --> FILE
    anybody       --interrupts--'    (cdefs/observe.c)          (cdefs/trace.c)
    the loop      --phases-------------------------------------'

One event is one line, so that other programs need no JSON parser for the whole. A file without its
end, from a process that was killed, opens, too. Source: "Trace Event Format", and
https://perfetto.dev/docs/getting-started/other-formats.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.fd import EventFd
from vmm.kvm.exit_observer import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm.loop import Loop
    from vmm.observe.names import Named

VCPU_RECORDS: Final = 1 << 15
QUEUE_RECORDS: Final = 1 << 13
INTERRUPT_RECORDS: Final = 1 << 12
"""Records in the ring of each source; 40 bytes each."""

INTERVAL: Final = 0.25
"""Seconds between flushes; a ring that is half full asks for one at once."""

ROOM: Final = 1 << 20
"""Bytes of lines that are formatted at a time."""

PASSES: Final = 16
"""Times `ROOM` that one flush writes of a ring; more than a full one has, less than no end."""

MACHINE_TRACK: Final = 1
"""The track of the machine's phases; others have ascending numbers."""

_untouched = ffi.new_allocator(should_clear_after_alloc=False)


def process_start() -> int:
    """Return when this process was started, in nanoseconds of CLOCK_MONOTONIC.

    To a hundredth of a second, which is what /proc/self/stat has.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123  (before the sandbox, once)
        fields = file.read().rpartition(b")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    return time.monotonic_ns() - int(age * 1e9)


class _Source:
    """One ring and what its lines say."""

    def __init__(self, size: int, wake: int, label: str, **said: object) -> None:
        self._records = _untouched("struct pyvmm_record[]", size)
        self.ring: Any = ffi.new(
            "struct pyvmm_trace_ring *", {"records": self._records, "size": size, "wake": wake}
        )
        self._label = _text(label)
        self.c: Any = ffi.new(
            "struct pyvmm_trace_source *",
            {"ring": self.ring, "name": ffi.from_buffer("char[]", self._label), **said},
        )

    @property
    def lost(self) -> int:
        """Records that found the ring full."""
        return lib.pyvmm_trace_lost(self.ring)


class Trace(Closeable):
    """Write a trace to *fd*, which the caller closes. *origin* is time 0 in it, as `process_start`.

    Use `flush`, `mark` and `span` in one thread. A failed write ends the trace, not the machine:
    *on_error* is called with the error.
    """

    def __init__(self, fd: int, origin: int, on_error: Callable[[OSError], object]) -> None:
        self._fd = fd
        self._on_error = on_error
        self._origin = origin
        self._wake = EventFd()
        self._out = _untouched("char[]", ROOM)
        self._taken = ffi.new("uint32_t *")
        self._sources: dict[int, _Source] = {}
        self._reasons = _reason_table()
        self.names: Callable[[], list[Named]] = list
        """Returns what addresses are called now; see `vmm.observe.names.disjoint`."""
        self._named: list[Named] = []
        self._names = _name_table([])
        self._loop: Loop | None = None
        self._is_open = True
        self.records = 0
        """Records that were written."""
        self._write(b"[\n")
        self._meta("process_name", MACHINE_TRACK, "pyvmm")
        self._label(MACHINE_TRACK, "machine")

    # --- what is recorded ---------------------------------------------------------------------

    def source(self, label: str, size: int) -> Any:
        """Return a new ring of *size* records, a power of two, on a track called *label*."""
        track = MACHINE_TRACK + 1 + len(self._sources)
        reasons = self._reasons[0]
        source = self._sources[track] = _Source(
            size,
            self._wake.fileno(),
            label,
            origin=self._origin,
            process=os.getpid(),
            track=track,
            reasons=reasons,
            reason_count=len(reasons),
        )
        self._label(track, label)
        return source.ring

    def mark(self, name: str, args: Mapping[str, object] | None = None) -> None:
        """Write an instant of the machine's track: now."""
        now = time.monotonic_ns()
        self._event("i", MACHINE_TRACK, name, now, s="p", cat="machine", args=args or {})

    def span(self, name: str, begin: int, end: int) -> None:
        """Write that *name* took from *begin* to *end* on the machine's track."""
        # One that begins before the origin is cut there: Perfetto drops spans that overlap.
        took = self._since(end) - self._since(begin)
        self._event("X", MACHINE_TRACK, name, begin, dur=took, cat="machine")

    def _update_names(self) -> None:
        """Give the C the names of addresses, if they have changed."""
        named = self.names()
        if named == self._named:
            return
        self._named = named
        self._names = _name_table(named)

    # --- writing ------------------------------------------------------------------------------

    def watch(self, loop: Loop) -> None:
        """Let *loop* flush the rings, until `close`."""
        self._loop = loop
        loop.add_reader(self._wake.fileno(), self.flush)
        loop.call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        if self._loop is not None:
            self.flush()
            self._loop.call_later(INTERVAL, self._tick)

    def flush(self) -> None:
        """Write what the rings hold."""
        self._wake.drain()
        self._update_names()
        for source in self._sources.values():
            source.c.names = self._names[0]
            for _ in range(PASSES):
                length = lib.pyvmm_trace_format(source.c, self._out, ROOM, self._taken)
                if not length or not self._is_open:
                    break
                self.records += self._taken[0]
                self._write(ffi.buffer(self._out, length))

    @property
    def lost(self) -> int:
        """Records that were lost because a ring was full."""
        return sum(source.lost for source in self._sources.values())

    def close(self) -> None:
        """Write what is left, what was lost, and the file's end. Idempotent."""
        if self._loop is not None:
            self._loop.remove_reader(self._wake.fileno())
            self._loop = None
        if self._is_open:
            self.flush()
            for track, source in self._sources.items():
                if source.lost:
                    now = time.monotonic_ns()
                    self._event("i", track, "lost", now, s="t", args={"records": source.lost})
            self._write(_line({"ph": "M", "pid": os.getpid(), "name": "trace_end"}) + b"\n]\n")
            self._is_open = False
        self._wake.close()

    def _label(self, track: int, label: str) -> None:
        self._meta("thread_name", track, label)
        event = {"ph": "M", "pid": os.getpid(), "tid": track, "name": "thread_sort_index"}
        self._write(_line({**event, "args": {"sort_index": track}}) + b",\n")

    def _meta(self, what: str, track: int, name: str) -> None:
        event = {"ph": "M", "pid": os.getpid(), "tid": track, "name": what}
        self._write(_line({**event, "args": {"name": name}}) + b",\n")

    def _event(self, kind: str, track: int, name: str, at: int, **more: object) -> None:
        pid, since = os.getpid(), self._since(at)
        event = {"ph": kind, "pid": pid, "tid": track, "name": name, "ts": since}
        self._write(_line({**event, **more}) + b",\n")

    def _since(self, at: int) -> int:
        """Return *at* ns of CLOCK_MONOTONIC in microseconds of the trace."""
        return max(0, at - self._origin) // 1000

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        try:
            while self._is_open and view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._is_open = False
            self._on_error(error)


class Tracing(Closeable):
    """Own the `trace` that goes to descriptor *fd*, flushed by *loop*; none if *fd* is None.

    Use as a context manager around the machine, whose last exits it writes at `close`.
    """

    def __init__(self, loop: Loop, fd: int | None) -> None:
        self.say: Callable[[str], object] = lambda _line: None
        """Called with each line for the user."""
        self.trace: Trace | None = None
        if fd is not None:
            self.trace = Trace(fd, process_start(), self._failed)
            self.trace.watch(loop)

    def _failed(self, error: OSError) -> None:
        self.say(f"--trace: {error.strerror}; the guest goes on, the trace ends here")

    def close(self) -> None:
        """Write the end of the trace. Idempotent."""
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.close()
            if trace.lost:
                self.say(f"--trace: {trace.lost} records were lost: the host was too slow")


def _line(event: dict[str, object]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _text(words: str) -> bytes:
    """Return *words* as in a JSON string, without quotes, for C."""
    return json.dumps(words)[1:-1].encode() + b"\0"


def _name_table(named: Sequence[Named]) -> tuple[Any, list[Any]]:
    """Return *named* as C has it, and what keeps that alive."""
    texts = [_text(each.name) for each in named]
    entries = ffi.new(
        "struct pyvmm_named[]",
        [
            (each.addresses.base, each.addresses.end, ffi.from_buffer("char[]", text))
            for each, text in zip(named, texts, strict=True)
        ],
    )
    names = ffi.new("struct pyvmm_names *", {"count": len(named), "entries": entries})
    return names, [texts, entries]


def _reason_table() -> tuple[Any, list[Any]]:
    """Return the names of exit reasons by number as C has them, and what keeps them alive."""
    keep = []
    table = ffi.new("char const *[]", max(NAMES) + 1)
    for number, name in NAMES.items():
        keep.append(ffi.new("char[]", name.encode()))
        table[number] = keep[-1]
    return table, keep
