"""What happens to a machine, as structured events for programs: JSON lines through structlog.

structlog is imported only when somebody listens; `Events` without a stream costs one
attribute test an event. Never emit per exit: an event costs tens of microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import TextIO

COMPLAINTS: Final = 100
"""How many events of each kind a guest can cause at one place: they must not fill a disk."""


class Events:
    """A stream of events: ``emit("vcpu-started", vcpu=0)`` writes one JSON object on one line.

    Every event carries ``event`` and ``timestamp`` (ISO 8601, UTC).
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._logger: Any = None
        if stream is not None:
            import structlog

            self._logger = structlog.wrap_logger(
                structlog.WriteLogger(stream),
                processors=[
                    structlog.processors.TimeStamper(fmt="iso", utc=True),
                    structlog.processors.JSONRenderer(),
                ],
            )

    def emit(self, event: str, **fields: object) -> None:
        """Write one event. *fields* must be JSON values."""
        if self._logger is not None:
            self._logger.info(event, **fields)


class Bounded(Events):
    """What a guest may cause without end, at one place: of each kind of event the first few.

    *events* gets the first `COMPLAINTS`, the rest is dropped.
    """

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events
        self._told: dict[str, int] = {}

    def emit(self, event: str, **fields: object) -> None:
        """Write one event, if there were not too many of its kind."""
        told = self._told.get(event, 0)
        if told < COMPLAINTS:
            self._told[event] = told + 1
            self._events.emit(event, **fields)
