"""Events that a test looks at."""

from __future__ import annotations

from vmm.events import Events

PHASES = {"phase", "guest-said", "isolated"}
"""Events of every machine that say how far it is, beside what happens to it."""


class Recorded(Events):
    """Keep what was emitted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, object]]] = []

    def emit(self, event: str, **fields: object) -> None:
        self.seen.append((event, fields))

    def __getitem__(self, name: str) -> list[dict[str, object]]:
        """Return the fields of each event called *name*."""
        return [fields for event, fields in self.seen if event == name]

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]
