"""Show progress on stderr: a bar on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST = 36
"""Columns of a bar."""
_LEAST = 4
"""Columns without which there is no bar, but a percentage only."""
_INTERVAL = 0.1
"""Seconds between two pictures of a bar."""
_SOON = 2.0
"""Seconds after which it can be told how long the rest will take."""


@contextmanager
def step(label: str, total: float = 100.0) -> Iterator[Callable[[float], None]]:
    """Show one step of work that may take over two seconds.

    Yield ``reach(done)``: a function to call with how much of *total* is done, in any unit. The
    bar never goes backwards. A step that cannot tell need not call it.
    """
    if not sys.stderr.isatty():
        sys.stderr.write(f"pyvmm: {label}\n")
        sys.stderr.flush()
        yield lambda _done: None
        return
    bar = _Bar(f"pyvmm: {label}")
    try:
        yield lambda done: bar.reach(done / total)
        bar.reach(1.0)
    finally:
        bar.end()


class _Bar:
    """A bar on the terminal that stderr is. Each picture fits the width that it has then."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = time.monotonic()
        self._drawn = 0.0
        self._done = 0.0
        self._draw()

    def reach(self, done: float) -> None:
        """Draw the bar anew with the fraction *done*, unless that was done just now."""
        if done <= self._done:
            return
        self._done = min(done, 1.0)
        if self._done == 1.0 or time.monotonic() - self._drawn >= _INTERVAL:
            self._draw()

    def end(self) -> None:
        """Leave the bar's last picture as a line."""
        sys.stderr.write("\n")
        sys.stderr.flush()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        sys.stderr.write(f"\r{self._picture(_columns() - 1)}\x1b[K")
        sys.stderr.flush()

    def _picture(self, columns: int) -> str:
        """Return what fits *columns*: the percentage first, then the label, the bar, the rest."""
        percentage = f" {self._done:4.0%}"
        label = self._label[: max(columns - len(percentage), 0)]
        left = self._left()
        room = columns - len(label) - len(percentage) - len("  []") - len(left)
        if room < _LEAST and left:
            room, left = room + len(left), ""
        if room < _LEAST:
            return f"{label}{percentage}"[:columns]
        width = min(room, _MOST)
        full = int(width * self._done)
        return f"{label}  [{'#' * full:-<{width}}]{percentage}{left}"

    def _left(self) -> str:
        """Return how long the rest will take; nothing if that can't be told."""
        elapsed = time.monotonic() - self._began
        if elapsed < _SOON or not 0 < self._done < 1:
            return ""
        seconds = round(elapsed * (1 - self._done) / self._done)
        return f"  {seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _columns() -> int:
    """Return the width of stderr's terminal; stdout may be a pipe, or another one."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
