"""Report what happens to a machine as JSON lines, for programs to read.

structlog is imported only if there is a stream; without one an event costs an attribute test. With
one it costs tens of microseconds, so never emit an event for each exit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import TextIO

COMPLAINTS: Final = 100
"""Events of each kind that a guest can cause at one place: they must not fill the host's disk."""


class Events:
    """A stream of events: ``emit("ended", how="reset")`` writes one JSON object on one line.

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
    """Events that a guest can cause without end, at one place.

    Pass the first `COMPLAINTS` of each kind on to *events* and drop the rest.
    """

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events
        self._told: dict[str, int] = {}

    def emit(self, event: str, **fields: object) -> None:
        """Write one event, unless there were too many of its kind."""
        told = self._told.get(event, 0)
        if told < COMPLAINTS:
            self._told[event] = told + 1
            self._events.emit(event, **fields)
