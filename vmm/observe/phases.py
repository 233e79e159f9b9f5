"""The phases of a boot: from the process's start to what the guest says.

    process start | parts opened | VM made | loaded | power-on | first byte | the guest's own words

Each phase is an event (``--events``) and a span of the trace's machine track.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.kvm.fd import KvmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.coherence.ledger import Ledger
    from vmm.events import Events
    from vmm.observe.trace import Trace
    from vmm.terminal.console import OutputSource

WORDS: Final[dict[str, re.Pattern[bytes]]] = {
    "kernel's first words": re.compile(rb"Booting Linux on physical CPU"),
    "all CPUs are up": re.compile(rb"smp: Brought up \d+ node"),
    "init starts": re.compile(rb"Run \S+ as init process"),
    "login prompt": re.compile(rb"login: "),
    "kernel restarts": re.compile(rb"reboot: Restarting system"),
    "kernel powers off": re.compile(rb"reboot: Power down"),
}
"""What a Linux guest says on its way, by what it means."""

KEPT: Final = 128
"""Bytes of output that may be the begin of such words."""


class Phases:
    """Note the phases of power cycles in *events* and *trace*. Use it in the loop's thread."""

    def __init__(self, events: Events, trace: Trace | None, origin: int) -> None:
        self._events = events
        self._trace = trace
        self._origin = origin
        self._last = origin

    def passed(self, name: str) -> None:
        """Note that phase *name*, which began when the one before it ended, has ended now."""
        now = time.monotonic_ns()
        if self._trace is not None:
            self._trace.span(name, self._last, now)
        self._emit("phase", name, self._last, now)
        self._last = now

    def said(self, name: str) -> None:
        """Note what the guest has just said."""
        now = time.monotonic_ns()
        if self._trace is not None:
            self._trace.mark(name)
        self._emit("guest-said", name, self._last, now)

    @property
    def traced(self) -> bool:
        """Whether they go into a trace, and the ledger with them at the end."""
        return self._trace is not None

    def end(self, ledger: Callable[[], Ledger]) -> None:
        """Note the ledger of guest memory, as the guest has it at its end, in the trace."""
        if self._trace is not None:
            with suppress(KvmError):  # of a host whose memory map cannot be read now
                ranges = [entry.as_json() for entry in ledger()]
                self._trace.mark("ledger", {"ranges": ranges})

    def _emit(self, event: str, name: str, begin: int, end: int) -> None:
        self._events.emit(
            event,
            name=name,
            seconds=round((end - begin) / 1e9, 6),
            since_start=round((end - self._origin) / 1e9, 6),
        )


class WordsWatch:
    """Pass on the output of *source*, and tell *phases* of its first byte and of `WORDS`."""

    def __init__(self, source: OutputSource, phases: Phases) -> None:
        self._source = source
        self._phases = phases
        self._recent = b""
        self.restart()

    def restart(self) -> None:
        """Expect the first byte and all words again: another power cycle."""
        self._recent = b""
        self._awaited = dict(WORDS)
        self._is_silent = True

    def fileno(self) -> int:
        """Return the source's descriptor."""
        return self._source.fileno()

    def drain(self, limit: int, /) -> bytes:
        """Return up to *limit* bytes of output."""
        data = self._source.drain(limit)
        if data and self._is_silent:
            self._is_silent = False
            self._phases.passed("the guest is silent")
        if data and self._awaited:
            text = self._recent + data
            for name, words in list(self._awaited.items()):
                if words.search(text):
                    del self._awaited[name]
                    self._phases.said(name)
            self._recent = text[-KEPT:]
        return data
