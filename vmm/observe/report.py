"""One HTML page of a run, without anything from elsewhere: for a mail, a bug, an archive."""

from __future__ import annotations

import statistics
from html import escape
from typing import TYPE_CHECKING, Any, Final

from vmm.arm64 import layout
from vmm.coherence import chart
from vmm.coherence.ledger import Entry
from vmm.observe import plot
from vmm.observe.counters import KVM_SHOWN
from vmm.observe.recording import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm.observe.recording import Recording

STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc }
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif }
table { border-collapse: collapse; font-size: 14px } .wide { overflow-x: auto }
td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid #eee }
td:first-child, th:first-child { text-align: left }
.note { color: #666 }
"""

Row = tuple[object, ...]


def page(
    title: str, found: Recording, events: Sequence[dict[str, Any]] = (), more: str = ""
) -> str:
    """Return the page about *found*. *events* are those of ``--events``; *more* is HTML to add."""
    body = [f"<h1>{escape(title)}</h1>", *_sections(found, events), more]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _sections(found: Recording, events: Sequence[dict[str, Any]]) -> Iterator[str]:
    if found.lost:
        yield f"<p><b>{found.lost} records were lost</b>: the numbers below are too small.</p>"
    yield "<h2>Phases</h2>"
    yield plot.phases(found.phases, found.words, found.end)
    by_name = _together(found)
    yield "<h2>Exits over time</h2>"
    if by_name:
        yield plot.stacked({name: each.times for name, each in by_name}, found.end)
        yield "<h2>Exits by what they are</h2>"
        yield "<p class=note>An exit lasts from KVM_RUN's return to the next entry.</p>"
        yield _table(_DURATIONS, (_durations(name, each) for name, each in by_name))
        yield "<h2>Exits by vCPU</h2>"
        yield _vcpus(found)
    else:
        yield "<p>There were none.</p>"
    if found.chains:
        yield "<h2>Queues</h2>"
        yield _table(("queue", *_DURATIONS[1:], "read", "written"), _queues(found))
    if found.interrupts:
        yield "<h2>Interrupts</h2>"
        yield _table(("source", "raised"), sorted(found.interrupts.items()))
    if found.ledger:
        yield "<h2>Guest physical memory</h2>"
        entries = [Entry.from_json(entry) for entry in found.ledger]
        yield f"<div class=wide>{chart.svg(entries, layout.REGISTERS)}</div>"
    if events:
        yield "<h2>Events</h2>"
        yield _table(("when", "event", "what"), map(_event, events))


_DURATIONS: Final = ("exit", "number", "total ms", "median us", "99 % us", "most us")


def _durations(name: str, series: Series) -> Row:
    ordered = sorted(series.durations)
    centile = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    median = statistics.median(ordered)
    return (
        name,
        len(ordered),
        f"{sum(ordered) * 1e3:.1f}",
        *(f"{value * 1e6:.1f}" for value in (median, centile, ordered[-1])),
    )


def _together(found: Recording) -> list[tuple[str, Series]]:
    """Return the exits of all vCPUs by name, the most frequent first."""
    whole: dict[str, Series] = {}
    for names in found.exits.values():
        for name, series in names.items():
            into = whole.setdefault(name, Series())
            into.times.extend(series.times)
            into.durations.extend(series.durations)
    return sorted(whole.items(), key=lambda item: (-len(item[1].times), item[0]))


def _vcpus(found: Recording) -> str:
    """Return a table of our exits and KVM's counters, of all power cycles."""
    shown = [
        name
        for name in KVM_SHOWN
        if any(name in vcpu for each in found.kvm for vcpu in each.values())
    ]
    rows = []
    for vcpu, names in sorted(found.exits.items()):
        ours = sum(len(series.times) for series in names.values())
        theirs = [sum(each.get(vcpu, {}).get(name, 0) for each in found.kvm) for name in shown]
        rows.append((vcpu, ours, *theirs))
    return _table(("vCPU", "to pyvmm", *(f"KVM: {name}" for name in shown)), rows)


def _queues(found: Recording) -> Iterator[Row]:
    for name, series in sorted(found.chains.items()):
        moved = chart.human(found.readable[name]), chart.human(found.written[name])
        yield (*_durations(name, series), *moved)


def _event(event: dict[str, Any]) -> Row:
    rest = {key: value for key, value in event.items() if key not in ("event", "timestamp")}
    what = ", ".join(f"{key} {value}" for key, value in rest.items())
    return str(event.get("timestamp", ""))[11:23], event.get("event", ""), what


def _table(head: Sequence[str], rows: Iterable[Row]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div class=wide><table>{line(head, 'th')}{body}</table></div>"
