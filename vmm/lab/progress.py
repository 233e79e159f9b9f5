"""Show progress on stderr: a bar on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LEAST, _MOST = 4, 36
"""Columns of a bar."""
_REST = len("  [") + len("]  100%  00:00:00") + 1
"""Columns of what click writes around label and bar; the last stays free, or the line wraps."""


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

    label, width = _fit(f"pyvmm: {label}", shutil.get_terminal_size().columns)
    with click.progressbar(
        length=1000, label=label, width=width, file=sys.stderr, show_pos=False
    ) as bar:

        def reach(done: float) -> None:
            bar.update(max(0, min(1000, int(1000 * done / total)) - bar.pos))

        bar.render_progress()
        yield reach
        reach(total)


def _fit(label: str, columns: int) -> tuple[str, int]:
    """Return *label*, cut if need be, and the width of the bar that fits beside it."""
    room = columns - _REST
    label = label[: max(room - _LEAST, 0)]
    return label, max(min(_MOST, room - len(label)), _LEAST)
