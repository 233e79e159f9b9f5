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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from vmm.lab.host.emulated_host import Host

PATIENCE = 300.0
"""Seconds to wait for any one thing."""


class Conversation:
    """*argv*, running in *host*. A context manager: ends the command if it still runs.

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
        self._session = host.agent.start(
            argv, self._write, env=env, cwd=cwd, tty=(24, 80) if terminal else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.close()

    def expect(self, pattern: bytes, patience: float = PATIENCE) -> re.Match[bytes]:
        """Wait until the output after the last match matches; return the match."""
        deadline = time.monotonic() + patience
        while not (match := re.compile(pattern).search(self.output, self._read)):
            assert self.status is None, f"it ended without {pattern!r}: {self.story()}"
            assert self._receive(deadline), f"no {pattern!r} in {patience:.0f} s: {self.story()}"
        self._read = match.end()
        return match

    def type(self, data: bytes) -> None:
        """Send *data*, at most the protocol's window, to its standard input."""
        self._session.send_input(data)

    def end_input(self) -> None:
        """Close its standard input."""
        self._session.send_input(b"")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its children."""
        self._session.send_signal(number)

    def finish(self, patience: float = PATIENCE) -> int:
        """Wait for its end; return its exit status."""
        deadline = time.monotonic() + patience
        while self.status is None:
            assert self._receive(deadline), f"it has not ended in {patience:.0f} s: {self.story()}"
        return self.status

    def story(self) -> str:
        """Return the end of the output, for the message of a test that fails."""
        return (
            f"{' '.join(self.argv)}: status {self.status}\n"
            f"{self.output[-4000:].decode(errors='replace')}\n"
            f"stderr: {self.errors[-2000:].decode(errors='replace')}"
        )

    def _write(self, kind: bytes, data: bytes) -> None:
        (self.output if kind == protocol.OUTPUT else self.errors).extend(data)

    def _receive(self, deadline: float) -> bool:
        """Receive one piece of data; return False if none came before *deadline*."""
        self._session.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            self.status = self._session.receive()
        except TimeoutError:
            return False
        return True
