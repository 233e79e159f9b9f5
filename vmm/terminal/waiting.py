"""A line that tells what the user waits for, gone as soon as there is something else to see.

It is on stderr, and on a terminal only: who reads a pipe gets nothing of it.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Final, Self

DELAY: Final = 1.0
"""Seconds of silence before the line is shown."""
ERASE: Final = "\r\x1b[K"
"""Return to the first column and erase the line (ECMA-48: EL)."""


class WaitingLine:
    """At most one line, shown by a timer's thread. `begin` and `end` are for one other thread.

    The end of ``with`` is an `end`, too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, text: str) -> None:
        """Show *text* after `DELAY`, unless `end` is called before."""
        self.end()
        if sys.stderr is None or not sys.stderr.isatty():
            return
        self._timer = threading.Timer(DELAY, self._show, [text])
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no more threads: silence will do
            self._timer = None

    def end(self) -> None:
        """Erase the line if it is shown; do not show it any more. Idempotent, and cheap."""
        if self._timer is None:
            return
        with self._lock:
            self._timer.cancel()
            self._timer = None
            if self._shown:
                self._shown = False
                _write(ERASE)

    def _show(self, text: str) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                self._shown = True
                _write(f"{ERASE}pyvmm: {text}"[: _columns() + len(ERASE)])


def _columns() -> int:
    """Return how many columns a line may have without wrapping."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return (columns or 80) - 1  # 0: the terminal's size was never set


def _write(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
