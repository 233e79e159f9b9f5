"""Machines in an emulated arm64 host, driven by the same calls as those of this host."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from vmm import thread
from vmm.closeable import Closeable
from vmm.config import codec
from vmm.errors import HostError, UserError, VmmError
from vmm.lab import protocol
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import visible
from vmm.library.command import Command
from vmm.library.engine import CALLS
from vmm.library.machine import Machine
from vmm.library.peer import Peer, error_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Protocol

    from vmm.config import MachineConfig
    from vmm.lab.host.session import Completed
    from vmm.library.engine import Engine, Listener
    from vmm.machine.virtio_devices import MakeDevice

    class Method(Protocol):
        """A method of an engine."""

        def __call__(self, *arguments: Any) -> Any:
            """Call it at the other end."""


END: Final = 20.0
"""Seconds that the process in the host gets to take its machine apart."""

SERVE: Final = ("python3", "-m", "vmm.library.serve")


class Lab(Closeable):
    """A lab host of *profile*, real KVM in an emulated machine. Use it as a context manager.

    One that `pyvmm lab up` keeps up is used, and stays up; else one is started, and ends with this.
    *host* is one that is up already. Raises `UserError` and `HostError`.
    """

    def __init__(self, profile: str = "fwb", *, host: Host | None = None) -> None:
        found = host or Host.find(profile)
        self._ends = found is None
        self.host: Final = found or Host.start(profile)

    def Machine(  # noqa: N802  (it is `vmm.Machine`, in this host)
        self,
        image: str | Path | None = None,
        /,
        *,
        config: MachineConfig | None = None,
        **options: Any,
    ) -> Machine:
        """Return a machine in this host; see `vmm.Machine`. Paths are this machine's."""
        return Machine(image, config=config, on=self, **options)

    def run(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        """Run a command to its end, in *timeout* seconds; return status and output."""
        return self.host.run(argv, timeout=timeout)

    def command(
        self, argv: Sequence[str], *, terminal: bool = False, env: Mapping[str, str] | None = None
    ) -> Command:
        """Start a command to talk with."""
        return Command(self.host, argv, terminal=terminal, env=env)

    def install(self, *names: str) -> None:
        """Install Debian packages in the host: virtiofsd for ``share``, passt for ``net``."""
        packages.install(self.host, names)

    def engine(
        self, config: MachineConfig, listener: Listener, devices: Sequence[MakeDevice]
    ) -> Engine:
        """Return the engine of a machine in this host."""
        if devices:
            raise UserError(
                "devices: code of yours cannot run in the lab host's machine",
                "run the whole program there: pyvmm lab exec fwb -- python3 PROGRAM",
            )
        return LabEngine(self.host, config, listener)

    def close(self) -> None:
        """End the host, if it was started for this. Idempotent."""
        if self._ends:
            self.host.close()


class LabEngine(Closeable):
    """A machine of *config* in *host*: the calls of `vmm.library.engine.Engine`, passed on."""

    def __init__(self, host: Host, config: MachineConfig, listener: Listener) -> None:
        self._listener = listener
        self._errors = bytearray()
        self._sending = threading.Lock()
        self._room = threading.Condition()
        self._peer = Peer(self._send, self._heard)
        self._closed = False
        self._session = host.agent.start(SERVE, self._take)
        self._thread = thread.start("vmm-lab", self._receive)
        try:
            named: list[Path] = []

            def note(path: Path) -> Path:
                named.append(path)
                return visible(path)

            machine = codec.dumps({"config": config}, note)
            host.agent.allow(named)
            self._peer.call("build", machine)
        except BaseException:
            self.close()
            raise

    def __getattr__(self, method: str) -> Method:
        if method not in CALLS:
            raise AttributeError(method)
        return lambda *arguments: self._peer.call(method, *arguments)

    def _heard(self, method: str, arguments: list[Any]) -> Any:
        """Pass on what the other end tells or asks the listener."""
        if method == "ended":
            how, error = arguments
            return self._listener.ended(how, None if error is None else error_of(*error))
        if method not in {"output", "event", "access", "exit"}:
            raise UserError(f"{method}: there is no such call")
        return getattr(self._listener, method)(*arguments)

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        with self._sending, self._room:  # whole messages, whoever sends
            while rest:
                self._room.wait_for(lambda: self._session.room > 0 or self._closed)
                if self._closed:
                    return
                sent = min(len(rest), self._session.room, protocol.CHUNK)
                self._session.send_input(bytes(rest[:sent]))
                rest = rest[sent:]

    def _take(self, kind: bytes, data: bytes) -> None:
        if kind == protocol.OUTPUT:
            self._peer.feed(data)
        else:
            self._errors = (self._errors + data)[-4000:]

    def _receive(self) -> None:
        """Receive until the process in the host has ended."""
        error: VmmError
        try:
            while (status := self._session.receive()) is None:
                with self._room:
                    self._room.notify_all()
            said = self._errors.decode(errors="replace").strip()
            error = HostError(f"the machine's process ended with {status}: {said}")
        except VmmError as failure:
            error = failure
        except OSError as failure:
            error = HostError(f"the connection to the lab host: {failure}")
        self._peer.hang_up(error)
        with self._room:
            closed, self._closed = self._closed, True
            self._room.notify_all()
        if not closed:
            self._listener.ended("failed", error)

    def close(self) -> None:
        """End the process in the host, and with it the machine. Idempotent."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._session.send_input(b"")
        if threading.current_thread() is not self._thread:
            self._thread.join(END)
            self._session.abort()
            self._thread.join()
            self._peer.join()
        self._session.close()
