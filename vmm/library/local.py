"""A machine in this process. Its event loop has a thread of its own, from construction to `close`.

user's threads --calls--> loop's thread --owns--> Loop, vmm.machine.machine.Machine
                              |                       '- a thread for each vCPU
                              '--tells--> Listener
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vmm import thread
from vmm.debug.watch import watch
from vmm.errors import HostError, UserError, VmmError
from vmm.events import Events
from vmm.kvm.exits import Interrupted
from vmm.library.calls import Calls
from vmm.loop import Loop
from vmm.machine.machine import Ending, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.config import MachineConfig
    from vmm.kvm.exits import Exit
    from vmm.library.engine import Listener
    from vmm.machine.virtio_devices import MakeDevice
    from vmm.terminal.console import InputSink, OutputSource

T = TypeVar("T")

CHUNK: Final = 1 << 16
TURN: Final = 16
"""Chunks of a console's output before others get a turn."""


class LocalEngine(Calls):
    """A machine of *config*, with virtio *devices* besides; see `vmm.library.engine.Engine`.

    Raises `UserError` and `HostError` if it cannot be built.
    """

    def __init__(
        self, config: MachineConfig, listener: Listener, devices: Sequence[MakeDevice] = ()
    ) -> None:
        super().__init__()
        self._config = config
        self._listener = listener
        self._devices = devices
        self._state = "new"
        self._closing = False
        self._loop: Loop
        self._machine: Machine
        self._ports: dict[str, Port] = {}
        built: Future[None] = Future()
        self._thread = thread.start("vmm-loop", self._main, built)
        built.result()

    # --- the loop's thread ----------------------------------------------------------------------

    def _main(self, built: Future[None]) -> None:
        try:
            with ExitStack() as owned:
                self._loop = owned.enter_context(Loop())
                events = Told(self._listener)
                self._machine = machine = owned.enter_context(
                    Machine(self._config, self._loop, events, self._devices)
                )
                self._connect()
                watch(self._config, machine, self._loop, events, owned)
                built.set_result(None)
                self._loop.run(until=lambda: self._state != "new" or self._closing)
                if not self._closing:
                    self._run(machine)
                self._loop.run(until=lambda: self._closing)
        except BaseException as error:
            if not built.done():
                built.set_exception(error)
            else:
                self._state = "ended"
                self._listener.ended("failed", _as_error(error))
            if not isinstance(error, Exception):
                raise
        finally:
            self._closing = True

    def _run(self, machine: Machine) -> None:
        error = None
        try:
            how = machine.run().value
        except Exception as failure:  # noqa: BLE001  (whoever waits for the machine hears of it)
            how, error = "failed", _as_error(failure)
        for port in self._ports.values():
            port.drain()
        self._state = "ended"
        self._listener.ended(how, error)

    def _connect(self) -> None:
        """Join the consoles to the listener."""
        machine = self._machine
        self._add_port("serial", machine.output, machine.uart)
        machine.uart.on_space = self._ports["serial"].more_room
        if (terminal := machine.terminal) is not None:
            self._add_port("virtio", terminal, terminal)
            terminal.on_space = self._ports["virtio"].more_room

    def _add_port(self, name: str, source: OutputSource, sink: InputSink) -> None:
        self._ports[name] = Port(
            self._loop, source, sink, lambda data: self._listener.output(name, data)
        )

    # --- calls ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Power on."""

        def do() -> None:
            if self._state != "new":
                raise UserError("the machine was started before", "make another one")
            self._state = "running"

        self._call(do)

    def send(self, port: str, data: bytes) -> None:
        """Send bytes to a console."""
        self._call(lambda: self._ports[port].send(data))

    def claim(self, hook: int, base: int, size: int) -> None:
        """Answer accesses to guest physical addresses by `Listener.access`."""
        device = Claimed(base, lambda *access: self._heard(self._listener.access, hook, *access))
        self._call(lambda: self._machine.claim(base, size, device))

    def watch_exits(self) -> None:
        """Tell each exit to the listener."""

        def tell(vcpu: int, exit_: Exit) -> None:
            if not isinstance(exit_, Interrupted):
                kind, fields = type(exit_).__name__, list(exit_)
                self._heard(self._listener.exit, vcpu, kind, fields)

        def do() -> None:
            if self._state != "new":
                raise UserError("exits are watched from the start", "ask for it before start")
            self._machine.on_exit = tell

        self._call(do)

    def _heard(self, handler: Callable[..., T], *arguments: Any) -> T:
        with self._handling():
            return handler(*arguments)

    @contextmanager
    def _handling(self) -> Iterator[None]:
        self._handlers.active = True
        try:
            yield
        finally:
            self._handlers.active = False

    def close(self) -> None:
        """End the machine and the loop's thread. Idempotent."""
        if not self._closing:
            self._closing = True
            self._machine.end(Ending.QUIT)
            self._loop.call_soon_threadsafe(lambda: None)
        if threading.current_thread() is not self._thread:
            self._thread.join()


class Port:
    """One console: its output goes to *take*, its input waits here for room. In the loop."""

    def __init__(
        self, loop: Loop, source: OutputSource, sink: InputSink, take: Callable[[bytes], None]
    ) -> None:
        self._loop, self._source, self._sink, self._take = loop, source, sink, take
        self._waiting = bytearray()
        loop.add_reader(source.fileno(), self._pump)

    def _pump(self) -> None:
        for _ in range(TURN):
            if not (data := self._source.drain(CHUNK)):
                return
            self._take(data)

    def drain(self) -> None:
        """Take all that the guest has sent."""
        while data := self._source.drain(CHUNK):
            self._take(data)

    def send(self, data: bytes) -> None:
        """Send *data*, now or once there is room."""
        self._waiting += data
        self._offer()

    def more_room(self) -> None:
        """Offer what waits. Thread-safe."""
        self._loop.call_soon_threadsafe(self._offer)

    def _offer(self) -> None:
        if self._waiting:
            del self._waiting[: self._sink.receive(bytes(self._waiting[:CHUNK]))]


class Claimed:
    """Guest physical addresses from *base* on that *answer* handles; a device on the bus."""

    def __init__(self, base: int, answer: Callable[[int, int, int | None], int]) -> None:
        self._base = base
        self._answer = answer

    def read(self, offset: int, size: int) -> int:
        """Return the answer to a load, as many bytes of it as the guest loads."""
        return self._answer(self._base + offset, size, None) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Pass a store on."""
        self._answer(self._base + offset, size, value)


class Told(Events):
    """Events that go to a listener."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def emit(self, event: str, **fields: object) -> None:
        """Pass one event on."""
        self._listener.event({"event": event, **fields})


def _as_error(error: BaseException) -> VmmError:
    return error if isinstance(error, VmmError) else HostError(f"{type(error).__name__}: {error}")
