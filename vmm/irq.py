"""Interrupt lines, as a device sees them: a level to hold."""

from __future__ import annotations

from typing import Protocol


class InterruptLine(Protocol):
    """One wire into the interrupt controller. Thread-safe."""

    def set_level(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Drive the wire high or low. Driving it as it is already has no effect."""
