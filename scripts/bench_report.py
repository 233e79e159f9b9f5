"""Results of a benchmark: figures with their targets, as a table or as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number. *low* and *high* are its quartiles within this run, if it is a median.

    at_most, at_least    the target, if there is one
    """

    group: str
    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 1
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None


def median(samples: Sequence[float], **fields: Any) -> Figure:
    """Return a figure for *samples*: their median, with quartiles."""
    low, middle, high = quartiles(samples)
    return Figure(value=middle, low=low, high=high, samples=len(samples), **fields)


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the first, second and third quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that *percent* of all do not exceed."""
    ordered = sorted(samples)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def undisturbed(samples: Sequence[float]) -> float:
    """Return what something takes when nothing interferes: the lower decile."""
    return percentile(samples, 10)


@dataclass
class Report:
    """All figures of one run, and what kind of machine it ran on."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *figures: Figure) -> None:
        """Add figures."""
        self.figures += figures

    def note(self, text: str) -> None:
        """Add a remark: what was not measured, and why."""
        self.notes.append(text)

    def table(self) -> str:
        """Return all of it for people."""
        lines = [f"{key}: {value}" for key, value in machine().items()]
        width = max((len(figure.name) for figure in self.figures), default=0)
        group = None
        for figure in self.figures:
            if figure.group != group:
                group = figure.group
                lines += ["", group]
            lines.append(f"  {figure.name:{width}}  {_row(figure)}".rstrip())
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines)

    def json(self) -> str:
        """Return all of it for programs."""
        rows = [{**vars(figure), "met": figure.met} for figure in self.figures]
        whole = {"machine": machine(), "figures": rows, "notes": self.notes}
        return json.dumps(whole, indent=1)


def _row(figure: Figure) -> str:
    target = ""
    if figure.at_most is not None:
        target = f"at most {figure.at_most:g}"
    elif figure.at_least is not None:
        target = f"at least {figure.at_least:g}"
    verdict = {True: "ok", False: "MISSED", None: ""}[figure.met]
    spread = ""
    if figure.low is not None and figure.high is not None:
        spread = f"{_number(figure.low)} .. {_number(figure.high)}, n={figure.samples}"
    value = f"{_number(figure.value)} {figure.unit}"
    return f"{value:>16}  {target:14} {verdict:7} {spread:26} {figure.note}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


_noise: dict[str, float] = {}


def calibrate(seconds: float = 0.5) -> None:
    """Find out how quiet the machine is: time the same piece of work again and again."""
    laps = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        sum(range(20_000))
        laps.append(time.perf_counter() - began)
    _noise["p90/p10"] = percentile(laps, 90) / percentile(laps, 10)
    _noise["load"] = os.getloadavg()[0]


def machine() -> dict[str, str]:
    """Describe the machine, and how much else it does."""
    if not _noise:
        calibrate(0.1)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        "noise": f"load {_noise['load']:.1f}; the same work takes up to {_noise['p90/p10']:.2f} "
        "times as long (p90 by p10)",
    }
