"""Interrupt lines, as a device sees them: a level to hold."""

from __future__ import annotations

from threading import Lock
from typing import Protocol


class InterruptLine(Protocol):
    """One wire into the interrupt controller. Thread-safe."""

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Drive the wire high or low. Driving it as it is already has no effect."""


class SwitchableLine:
    """A line whose far end can be plugged elsewhere: a reset gives the machine a new GIC."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._level = False
        self._end: InterruptLine | None = None

    def connect(self, end: InterruptLine | None) -> None:
        """Plug the far end into *end*, which sees the present level at once; None: nowhere."""
        with self._lock:
            self._end = end
            if end is not None and self._level:
                end.set_level(True)

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Drive the wire."""
        with self._lock:
            if level != self._level:
                self._level = level
                if self._end is not None:
                    self._end.set_level(level)
