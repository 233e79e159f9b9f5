"""Run in a lab host: a machine that another process drives by calls on standard input and output.

`vmm.library.lab` starts it. Standard output has only calls: what else is printed goes to stderr.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from vmm.config import codec
from vmm.errors import HostError, UserError
from vmm.library.engine import CALLS
from vmm.library.local import LocalEngine
from vmm.library.peer import Peer, parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.errors import VmmError

CHUNK: Final = 1 << 16


class Served:
    """The machine of one caller, who is also its listener."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._lock = Lock()
        self._engine: LocalEngine | None = None
        self.peer = Peer(self._write, self._do)

    def _write(self, data: bytes) -> None:
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._output, view) :]

    def _do(self, method: str, arguments: list[Any]) -> Any:
        if method == "build":
            self._engine = LocalEngine(codec.loads(arguments[0])["config"], self)
            return None
        if method not in CALLS or self._engine is None:
            raise UserError(f"{method}: there is no such call")
        return getattr(self._engine, method)(*arguments)

    # The listener

    def output(self, port: str, data: bytes) -> None:
        """Pass on what the guest sent."""
        self.peer.tell("output", port, data)

    def event(self, fields: Mapping[str, Any]) -> None:
        """Pass an event on."""
        self.peer.tell("event", fields)

    def access(self, hook: int, address: int, size: int, value: int | None) -> int:
        """Ask for the answer to an access; the vCPU waits."""
        return int(self.peer.call("access", hook, address, size, value))

    def exit(self, vcpu: int, kind: str, fields: Sequence[Any]) -> None:
        """Pass an exit on; the vCPU waits, so that the caller can keep up."""
        self.peer.call("exit", vcpu, kind, fields)

    def ended(self, how: str, error: VmmError | None) -> None:
        """Pass the end on."""
        self.peer.tell("ended", how, None if error is None else parts(error))

    def close(self) -> None:
        """End the machine."""
        self.peer.hang_up(HostError("the caller is gone"))
        if self._engine is not None:
            self._engine.close()


def main() -> None:
    """Serve until standard input ends."""
    output = os.dup(1)
    os.dup2(2, 1)
    served = Served(output)
    try:
        while data := os.read(0, CHUNK):
            served.peer.feed(data)
    finally:
        served.close()


if __name__ == "__main__":
    main()
