"""Read a trace, as ``--trace`` writes it, for the report."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Phase(NamedTuple):
    """A phase or an instant of the machine's track. Seconds since the process's start."""

    name: str
    begin: float
    seconds: float


@dataclass
class Series:
    """What happened under one name: when each began and how long it took, in seconds."""

    times: array[float] = field(default_factory=lambda: array("d"))
    durations: array[float] = field(default_factory=lambda: array("d"))

    def add(self, time: float, duration: float) -> None:
        """Add one."""
        self.times.append(time)
        self.durations.append(duration)


@dataclass
class Recording:
    """A trace by what it is about.

    exits       by vCPU, then by name: "PL011 UART store", "kick"
    chains      by queue; with *readable* and *written* bytes
    interrupts  by source: how many
    phases      with a duration, in order of time; *words* are without
    kvm         KVM's own counters by vCPU, of each power cycle
    ledger      the last ledger of guest memory, entries as `vmm.coherence.ledger.Entry.as_json`
    lost        records that found a ring full
    """

    exits: dict[str, dict[str, Series]] = field(default_factory=dict)
    chains: dict[str, Series] = field(default_factory=dict)
    readable: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    interrupts: dict[str, int] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    words: list[Phase] = field(default_factory=list)
    kvm: list[dict[str, dict[str, int]]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    lost: int = 0
    end: float = 0.0


def read(path: Path) -> Recording:
    """Read the trace in *path*; its end may be missing. Raises `UserError` if it is none."""
    try:
        with path.open("rb") as file:
            return _Reader().read(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "name a file of pyvmm run --trace") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a trace of pyvmm's", "name a file of pyvmm run --trace"
        ) from error


class _Reader:
    """Sorts the events of one trace."""

    def __init__(self) -> None:
        self._found = Recording()
        self._tracks: dict[int, str] = {}
        self._begun: dict[str, float] = {}

    def read(self, lines: Iterable[bytes]) -> Recording:
        """Return what *lines* say. Raises ValueError, KeyError and the like."""
        lines = iter(lines)
        if next(lines, b"").strip() != b"[":
            raise ValueError
        for line in lines:
            if not line.endswith(b"\n"):
                break  # the process was killed while it wrote
            if (text := line.rstrip(b",\r\n")) not in (b"]", b""):
                self._event(json.loads(text))
        return self._found

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["ph"]
        if kind == "M":
            if event["name"] == "thread_name":
                self._tracks[event["tid"]] = event["args"]["name"]
            return
        begin, took = event["ts"] / 1e6, event.get("dur", 0) / 1e6
        self._found.end = max(self._found.end, begin + took)
        category = event.get("cat")
        if category == "exit":
            vcpu = self._found.exits.setdefault(self._tracks[event["tid"]], {})
            vcpu.setdefault(event["name"], Series()).add(begin, took)
        elif category == "queue":
            self._chain(event, begin)
        elif category == "interrupt":
            found = self._found.interrupts
            found[event["name"]] = found.get(event["name"], 0) + 1
        elif category == "machine":
            self._phase(event, Phase(event["name"], begin, took))
        elif event["name"] == "lost":
            self._found.lost += event["args"]["records"]

    def _chain(self, event: dict[str, Any], at: float) -> None:
        name, found = event["name"], self._found
        if event["ph"] == "b":
            self._begun[event["id"]] = at
            found.readable[name] = found.readable.get(name, 0) + event["args"]["readable"]
            found.written[name] = found.written.get(name, 0) + event["args"]["written"]
        else:
            begin = self._begun.pop(event["id"])
            found.chains.setdefault(name, Series()).add(begin, at - begin)

    def _phase(self, event: dict[str, Any], phase: Phase) -> None:
        if event["ph"] == "X":
            self._found.phases.append(phase)
        elif event["name"] == "KVM's counters":
            self._found.kvm.append(event["args"])
        elif event["name"] == "ledger":
            self._found.ledger = event["args"]["ranges"]
        else:
            self._found.words.append(phase)
