"""Talk with a command that runs in a lab host: wait for what it says, type, wait for its end.

Everything runs on an emulated machine that others use, too: time limits are there to end a test
that hangs, with the last that was said, and never to measure.
"""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING, Self

from vmm.lab import protocol
from vmm.lab.host import session
from vmm.lab.protocol import frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from vmm.lab.host.emulated_host import Host

PATIENCE = 300.0
"""Seconds for any one thing to happen."""


class Conversation:
    """*argv*, running in *host*. Use as a context manager: what still runs at its end is ended.

    Its standard streams are pipes; a *terminal* if that is asked for.
    """

    def __init__(
        self,
        host: Host,
        argv: Sequence[str],
        *,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self.argv = argv
        self.output = bytearray()
        self.errors = bytearray()
        self.status: int | None = None
        self._read = 0  # bytes of the output that were waited for
        self._frames = protocol.Frames()
        self._host = host
        self._connection = session.open_command(
            host, argv, env=env, cwd=cwd, tty=(24, 80) if terminal else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def expect(self, pattern: bytes, patience: float = PATIENCE) -> re.Match[bytes]:
        """Wait until the output after the last match matches; return the match."""
        deadline = time.monotonic() + patience
        while not (match := re.compile(pattern).search(self.output, self._read)):
            assert self.status is None, f"it ended without {pattern!r}: {self.story()}"
            assert self._receive(deadline), f"no {pattern!r} in {patience:.0f} s: {self.story()}"
        self._read = match.end()
        return match

    def type(self, data: bytes) -> None:
        """Send *data* to its standard input; not more than the window, at once."""
        self._send(protocol.INPUT, data)

    def end_input(self) -> None:
        """Close its standard input."""
        self._send(protocol.INPUT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its children."""
        self._send(protocol.SIGNAL, protocol.NUMBER.pack(number))

    def finish(self, patience: float = PATIENCE) -> int:
        """Wait for its end; return its exit status."""
        deadline = time.monotonic() + patience
        while self.status is None:
            assert self._receive(deadline), f"it has not ended in {patience:.0f} s: {self.story()}"
        return self.status

    def story(self) -> str:
        """Return the last that was said, for the message of a test that fails."""
        return (
            f"{' '.join(self.argv)}: status {self.status}\n"
            f"{self.output[-4000:].decode(errors='replace')}\n"
            f"stderr: {self.errors[-2000:].decode(errors='replace')}"
        )

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        self._connection.sendall(frame(kind, payload))

    def _receive(self, deadline: float) -> bool:
        """Take what has come, or what comes next; False: nothing came in time."""
        self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._connection.recv(protocol.CHUNK)
        except TimeoutError:
            return False
        if not data:
            raise session.lost(self._host)
        for kind, payload in self._frames.feed(data):
            if kind == protocol.OUTPUT:
                self.output += payload
            elif kind == protocol.ERRORS:
                self.errors += payload
            elif kind == protocol.EXIT:
                (self.status,) = protocol.NUMBER.unpack(payload)
            elif kind == protocol.FAILED:
                raise session.failed(payload)
        return True
