"""Interrupt lines as devices see them: a level to drive."""

from __future__ import annotations

from threading import Lock
from typing import Protocol


class InterruptLine(Protocol):
    """One input of the interrupt controller. Thread-safe."""

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Drive the line high or low. Repeating the present level has no effect."""


class SwitchableLine:
    """A line that can be connected to another controller: a reset gives the machine a new GIC."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._level = False
        self._end: InterruptLine | None = None

    def connect(self, end: InterruptLine | None) -> None:
        """Connect the line to *end*, which gets the present level at once; None disconnects it."""
        with self._lock:
            self._end = end
            if end is not None and self._level:
                end.set_level(True)

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Drive the line: see `InterruptLine`."""
        with self._lock:
            if level != self._level:
                self._level = level
                if self._end is not None:
                    self._end.set_level(level)
