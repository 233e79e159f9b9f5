"""Two plots as SVG: phases on a line of time, and stacked bars over time."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.observe.recording import Phase

WIDTH: Final = 1000
LEFT, RIGHT = 210, 20
PLOT: Final = WIDTH - LEFT - RIGHT
ROW: Final = 24
HEIGHT: Final = 220
AXIS: Final = 34
BINS: Final = 100
"""Bars over the whole time."""

COLOURS: Final = (
    "#1565c0",
    "#f9a825",
    "#2e7d32",
    "#c62828",
    "#6a1b9a",
    "#00838f",
    "#ef6c00",
    "#9e9e9e",
)
"""One a series; the last one is of all further series together."""

STEPS: Final = (1, 2, 5)


def ticks(end: float, most: int = 10) -> list[float]:
    """Return round values from 0 to *end*, not more than *most* + 1."""
    if end <= 0:
        return [0.0]
    unit = 1e-9
    while True:
        for step in STEPS:
            if end / (step * unit) <= most:
                count = int(end / (step * unit))
                return [round(index * step * unit, 9) for index in range(count + 1)]
        unit *= 10


def _frame(height: int, label: str, body: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(body)}</svg>'
    )


def _time_axis(end: float, bottom: int, top: int) -> list[str]:
    body = []
    for tick in ticks(end):
        x = LEFT + PLOT * (tick / end if end else 0)
        body.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="#ddd"/>')
        body.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g} s</text>')
    return body


def phases(spans: Sequence[Phase], instants: Sequence[Phase], end: float) -> str:
    """Return a line of time with a row a phase, and one for each instant."""
    bottom = ROW * (len(spans) + len(instants)) + 8
    body = _time_axis(end, bottom, 0)
    scale = PLOT / end if end else 0.0
    rows = [(span, COLOURS[index % 2]) for index, span in enumerate(spans)]
    rows += [(instant, COLOURS[2]) for instant in instants]
    for index, (phase, colour) in enumerate(sorted(rows, key=lambda row: row[0].begin)):
        y = index * ROW + 6
        x, width = LEFT + phase.begin * scale, max(2.0, phase.seconds * scale)
        said = f"{phase.seconds:.3f} s" if phase.seconds else f"at {phase.begin:.3f} s"
        text_x, anchor = x + width + 6, "start"
        if text_x > WIDTH - RIGHT - 70:
            text_x, anchor = x - 6, "end"
        body.append(
            f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(phase.name)}</text>'
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>'
            f'<text x="{text_x:.1f}" y="{y + 13}" text-anchor="{anchor}" fill="#555">{said}</text>'
        )
    return _frame(bottom + AXIS, "phases", body)


def stacked(series: Mapping[str, Sequence[float]], end: float) -> str:
    """Return how many there are in each of `BINS` parts of the time, by name.

    *series* are times in seconds, the most important first: the first seven have their own colour.
    """
    counts = {name: [0] * BINS for name in list(series)[: len(COLOURS) - 1]}
    for name, times in series.items():
        into = counts[name] if name in counts else counts.setdefault("others", [0] * BINS)
        for time in times:
            into[min(BINS - 1, int(time / end * BINS)) if end else 0] += 1
    most = max((sum(column) for column in zip(*counts.values(), strict=True)), default=0)
    body = _time_axis(end, HEIGHT, 0)
    for tick in ticks(most, 5):
        y = HEIGHT - (HEIGHT - 10) * (tick / most if most else 0)
        body.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        body.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    floors = [0.0] * BINS
    for index, (name, column) in enumerate(counts.items()):
        colour = COLOURS[-1] if name == "others" else COLOURS[index]
        for place, count in enumerate(column):
            if count:
                height = (HEIGHT - 10) * count / most
                floors[place] += height
                body.append(
                    f'<rect x="{LEFT + place * PLOT / BINS:.1f}" y="{HEIGHT - floors[place]:.1f}" '
                    f'width="{PLOT / BINS - 0.5:.1f}" height="{height:.1f}" fill="{colour}">'
                    f"<title>{escape(name)}: {count}</title></rect>"
                )
        y = 14 + index * 20
        body.append(
            f'<rect x="4" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
            f'<text x="22" y="{y}">{escape(name[:20])}</text>'
        )
    return _frame(HEIGHT + AXIS, "exits over time", body)
