"""Let clients see a console's output, and type into it, beside the user's own terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.control.feeds import Hub

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.control.routes import Feed
    from vmm.terminal.console import InputSink, OutputSource

TYPED_AHEAD: Final = 1 << 16
"""Bytes that wait for a guest that does not read; what is typed beyond is dropped."""


class SharedConsole:
    """What *source* has sent, which attached clients see as well; a source itself.

    What they type goes to *sink*; *call_soon* calls a function in the thread of the loop.
    """

    def __init__(
        self,
        source: OutputSource,
        sink: InputSink,
        call_soon: Callable[[Callable[[], object]], object],
    ) -> None:
        self._source = source
        self._sink = sink
        self._call_soon = call_soon
        self._hub = Hub()
        self._typed = bytearray()

    def fileno(self) -> int:
        """Return the source's descriptor."""
        return self._source.fileno()

    def drain(self, limit: int, /) -> bytes:
        """Return up to *limit* bytes of the source, and pass them on; b"": none wait."""
        data = self._source.drain(limit)
        if data and self._hub.heard:
            self._hub.put(data)
        return data

    def more_room(self) -> None:
        """Offer what waits: the sink has room. Thread-safe."""
        if self._typed:
            self._call_soon(self._offer)

    def feed(self) -> Feed:
        """Return the feed of a client that attaches."""
        return self._hub.feed(
            lambda missing: f"\r\npyvmm: {missing} bytes were lost\r\n".encode(),
            lambda data: self._call_soon(lambda: self.type(data)),
        )

    def type(self, data: bytes) -> None:
        """Type *data*. In the loop's thread."""
        self._typed += data[: TYPED_AHEAD - len(self._typed)]
        self._offer()

    def _offer(self) -> None:
        if self._typed:
            del self._typed[: self._sink.receive(bytes(self._typed))]
