"""Pass on what happens to whoever listens; without listeners it costs a look at a list."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from vmm.control.routes import Feed
from vmm.events import Events

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.control.routes import Channel


class Hub:
    """The listeners of one kind of bytes. `put` is for any thread, all else for the server's."""

    def __init__(self) -> None:
        self._channels: list[Channel] = []

    def put(self, data: bytes) -> None:
        """Pass *data* on to each listener."""
        for channel in self._channels:
            channel.post(data)

    @property
    def heard(self) -> bool:
        """Whether somebody listens."""
        return bool(self._channels)

    def feed(
        self,
        lost: Callable[[int], bytes],
        on_data: Callable[[bytes], object] = lambda _data: None,
    ) -> Feed:
        """Return the feed of what is put from now on; *on_data* takes what its client sends."""

        def begin(channel: Channel) -> None:
            channel.on_data = on_data
            channel.on_gone = lambda: self._leave(channel)
            self._channels = [*self._channels, channel]

        return Feed(begin, lost)

    def _leave(self, channel: Channel) -> None:
        self._channels = [each for each in self._channels if each is not channel]


class HeardEvents(Events):
    """Events that go to *events*, and to those who listen at `hub`, as JSON lines."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events
        self.hub = Hub()

    def emit(self, event: str, **fields: object) -> None:
        """Pass one event on."""
        self._events.emit(event, **fields)
        if self.hub.heard:
            self.hub.put(_line(event, fields))

    def feed(self) -> Feed:
        """Return the feed of the events from now on."""
        return self.hub.feed(lambda missing: _line("events-lost", {"bytes": missing}))


def _line(event: str, fields: dict[str, object]) -> bytes:
    """Return an event as `vmm.events` writes it."""
    now = time.time()
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    stamp = f"{when}.{int(now % 1 * 1e6):06}Z"
    return json.dumps({**fields, "event": event, "timestamp": stamp}).encode() + b"\n"
