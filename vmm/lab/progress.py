"""Say what takes long: a bar on a terminal, one plain line per step elsewhere; always on stderr."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def step(label: str, total: float = 100.0) -> Iterator[Callable[[float], None]]:
    """Show one step of work that may take over two seconds.

    Yields ``reach(done)``: tell how much of *total* is done (any unit; never goes backwards).
    A step that can't tell need not call it.
    """
    if not sys.stderr.isatty():
        sys.stderr.write(f"pyvmm: {label}\n")
        sys.stderr.flush()
        yield lambda _done: None
        return

    with click.progressbar(
        length=1000, label=f"pyvmm: {label}", file=sys.stderr, show_pos=False
    ) as bar:

        def reach(done: float) -> None:
            bar.update(max(0, min(1000, int(1000 * done / total)) - bar.pos))

        bar.render_progress()
        yield reach
        reach(total)
