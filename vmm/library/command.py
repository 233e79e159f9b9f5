"""A command that runs in a lab host: wait for what it says, type, wait for its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmm.closeable import Closeable
from vmm.errors import GuestError
from vmm.lab import protocol
from vmm.library.transcript import PATIENCE, Transcript

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmm.lab.host.emulated_host import Host


class Command(Transcript, Closeable):
    """*argv*, running in *host*. A context manager: ends the command if it still runs.

    Its standard streams are pipes; a *terminal* of 80 columns if that is asked for. The command is
    heard only while somebody waits for it: for one thread.
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
        super().__init__(" ".join(argv))
        self.errors = bytearray()
        """What it wrote to standard error so far."""
        self.status: int | None = None
        """Its exit status, once it has ended: 128 + N after signal N."""
        self._session = host.agent.start(
            argv, self._write, env=env, cwd=cwd, tty=(24, 80) if terminal else None
        )

    def close(self) -> None:
        """End it if it still runs. Idempotent."""
        self._session.close()

    def send(self, text: str | bytes) -> None:
        """Send *text*, at most the protocol's window, to its standard input."""
        self._session.send_input(text.encode() if isinstance(text, str) else text)

    def end_input(self) -> None:
        """Close its standard input."""
        self._session.send_input(b"")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its children."""
        self._session.send_signal(number)

    def finish(self, timeout: float = PATIENCE) -> int:
        """Wait for its end, for at most *timeout* seconds; return its exit status.

        Raises `GuestError` if it still runs then.
        """
        deadline = time.monotonic() + timeout
        while self.status is None:
            if not self.more(self.said, deadline):
                raise GuestError(f"it has not ended in {timeout:g} s: {self.story()}")
        return self.status

    def story(self) -> str:
        """Return the end of the output, for the message of a test that fails."""
        return (
            f"{self.name}: status {self.status}\n"
            f"{self.output[-4000:].decode(errors='replace')}\n"
            f"stderr: {self.errors[-2000:].decode(errors='replace')}"
        )

    def end(self) -> str | None:
        """Return that it has ended, with its status and its errors; None: it runs."""
        if self.status is None:
            return None
        return (
            f"it ended with {self.status}, stderr {self.errors[-2000:].decode(errors='replace')!r}"
        )

    def more(self, said: int, deadline: float) -> bool:  # noqa: ARG002  (whatever comes)
        """Receive one piece of data; return False if none came before *deadline*."""
        self._session.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            self.status = self._session.receive()
        except TimeoutError:
            return False
        return True

    def _write(self, kind: bytes, data: bytes) -> None:
        if kind == protocol.OUTPUT:
            self.add(data)
        else:
            self.errors.extend(data)
