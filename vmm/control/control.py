"""The requests of one machine: what each does, in the thread of the machine's loop."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from vmm import typed_json
from vmm.closeable import Closeable
from vmm.config.control import ControlConfig
from vmm.config.incoming import MOST_CONNECTIONS
from vmm.control import metrics
from vmm.control.consoles import SharedConsole
from vmm.control.names import name_of, socket_of
from vmm.control.openapi import describe
from vmm.control.routes import JSON, Call, Feed, Parameter, Route, Text
from vmm.control.server import Server
from vmm.errors import UserError
from vmm.machine.machine import Ending
from vmm.terminal.console import InputSink
from vmm.virtio.console.chardev.unix import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from vmm.config import MachineConfig
    from vmm.control.feeds import HeardEvents
    from vmm.loop import Loop
    from vmm.machine.machine import Machine
    from vmm.terminal.console import OutputSource

OWNER_ONLY: Final = 0o600
NDJSON: Final = "application/x-ndjson"
HOWS: Final = ("forced", "power-button")
"""How a machine can be stopped."""
CONSOLES: Final = {"serial": "the serial port", "virtio": "hvc0, of --console stdio"}


@dataclass(frozen=True)
class Vcpu:
    """A vCPU of the power cycle that runs. *exits*: returns from KVM_RUN."""

    number: int
    exits: int


@dataclass(frozen=True)
class Status:
    """What a machine is and does.

    state    running; or paused: see *holders*
    holders  how many hold it: its user by this socket counts as one, as gdb does, or a snapshot
    uptime   seconds since its process began to build it
    memory   bytes of RAM
    """

    name: str
    pid: int
    state: str
    holders: int
    uptime: float
    image: str
    cpus: int
    memory: int
    vcpus: tuple[Vcpu, ...]


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was written: bytes of memory, bytes that were maintained, and seconds."""

    stored: int
    maintained: int
    seconds: float


class Console(InputSink, Protocol):
    """A sink that says when there is room: a UART, or a port of a virtio console."""

    on_space: Callable[[], object]


class Control(Closeable):
    """The control socket of *machine*. Raises `UserError`: there can be no such socket.

    Construct it before the process is sealed, `start` it after that, close it before *loop*.
    """

    def __init__(
        self,
        config: MachineConfig,
        machine: Machine,
        loop: Loop,
        events: HeardEvents,
    ) -> None:
        control = config.control or ControlConfig()
        self.name: Final = name_of(control)
        self._config = config
        self._machine = machine
        self._events = events
        self._loop = loop
        self._consoles: dict[str, SharedConsole] = {}
        self._sinks: list[tuple[Console, SharedConsole]] = []
        self._began = time.monotonic()
        self._holding = False
        with ExitStack() as undo:
            listener = undo.enter_context(_listener(control, self.name))
            self.routes: Final = [*self._routes(), *self._shell_routes(control)]
            self._server = undo.enter_context(
                Server(listener.socket, os.getuid(), self.routes, loop.call_soon_threadsafe, events)
            )
            self._owned = undo.pop_all()

    def share(self, name: str, source: OutputSource, sink: Console) -> OutputSource:
        """Return *source* as it is shared with clients, who type into *sink*.

        *name* is one of `CONSOLES`. Before `start`.
        """
        shared = SharedConsole(source, sink, self._loop.call_soon_threadsafe)
        self._consoles[name] = shared
        self._sinks.append((sink, shared))
        return shared

    def start(self) -> None:
        """Start to serve. Raises `HostError`."""
        for sink, shared in self._sinks:
            sink.on_space = partial(_both, sink.on_space, shared.more_room)
        self._server.start()

    def _routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/",
                summary="Tell what the machine is and does.",
                handle=self._status,
                gives=Status,
            ),
            Route(
                method="GET",
                path="/openapi.json",
                summary="Describe these requests.",
                handle=lambda _call: describe(self.routes, self.name),
                gives=JSON,
            ),
            Route(
                method="POST",
                path="/pause",
                summary="Hold the machine still. Once it is held, this changes nothing.",
                handle=self._pause,
                gives=Status,
            ),
            Route(
                method="POST",
                path="/resume",
                summary="Let go of the machine. It goes on unless somebody else holds it.",
                handle=self._resume,
                gives=Status,
            ),
            Route(
                method="POST",
                path="/reset",
                summary="Begin another power cycle.",
                handle=self._reset,
                gives=Status,
            ),
            Route(
                method="POST",
                path="/stop",
                summary="End the machine, or ask its guest to; the connection ends when it has.",
                handle=self._stop,
                gives=Status,
                parameters={
                    "how": Parameter(
                        "forced: at once, as if the power failed; power-button: press it, the "
                        "guest may power off",
                        "forced",
                        HOWS,
                    )
                },
            ),
            Route(
                method="POST",
                path="/snapshot",
                summary="Write a snapshot into the directory of --snapshot.",
                handle=self._snapshot,
                gives=Snapshot,
            ),
            Route(
                method="POST",
                path="/memory-dump",
                summary="Write guest RAM to a file: raw, byte 0 is RAM's first, zeroes take no "
                "space. The machine is paused meanwhile.",
                handle=self._dump,
                gives=Status,
                fds=1,
            ),
            Route(
                method="GET",
                path="/metrics",
                summary="Give the machine's counters to Prometheus. The first look begins to "
                "count exits by reason.",
                handle=self._metrics,
                gives=metrics.CONTENT,
            ),
            Route(
                method="GET",
                path="/counters",
                summary="Give the machine's status and counters, as pyvmm top shows them.",
                handle=self._counters,
                gives=JSON,
            ),
            *(
                Route(
                    method="GET",
                    path=f"/consoles/{name}",
                    summary=f"See what the guest sends to {what} from now on, and type into it. "
                    "A client that is too slow loses bytes, and is told so.",
                    handle=partial(self._attach, name),
                    gives="",
                    protocol="pyvmm-console",
                )
                for name, what in CONSOLES.items()
            ),
            Route(
                method="POST",
                path="/migrate",
                summary="Begin to move the guest over connections to a destination, "
                "pyvmm run --incoming; events tell of the rest.",
                handle=self._migrate,
                gives=Status,
                parameters={
                    "downtime": Parameter("milliseconds that the guest may stand still", "300")
                },
                fds=1,
                more_fds=MOST_CONNECTIONS - 1,
            ),
            Route(
                method="GET",
                path="/events",
                summary="Stream events from now on, as JSON lines. A reader that is too slow "
                "loses some, and gets the event events-lost.",
                handle=self._feed_events,
                gives=NDJSON,
            ),
        ]

    def _shell_routes(self, control: ControlConfig) -> list[Route]:
        """Return the request for a prompt, if the machine may give one."""
        if not control.shell:
            return []
        from vmm.control import shell
        from vmm.library.machine import Machine as View
        from vmm.library.running import RunningEngine

        typists = {name: partial(self._type, name) for name in CONSOLES}
        place = RunningEngine(self._machine, self._loop, typists)
        names = {"machine": View(config=self._config, on=place)}
        return [
            Route(
                method="GET",
                path="/shell",
                summary="Open a Python prompt in the machine's process.",
                handle=lambda _call: shell.shell(names),
                gives="",
                protocol=shell.PROTOCOL,
            )
        ]

    def _type(self, name: str, data: bytes) -> None:
        if name not in self._consoles:
            raise UserError(f"there is no console {name}")
        self._consoles[name].type(data)

    # --- the requests -------------------------------------------------------------------------

    def _status(self, _call: Call) -> Status:
        machine, config = self._machine, self._config
        vcpus = machine.power.vcpus if machine.power is not None else ()
        return Status(
            name=self.name,
            pid=os.getpid(),
            state="paused" if machine.paused else "running",
            holders=machine.holders,
            uptime=round(time.monotonic() - self._began, 3),
            image=str(config.image or config.firmware or config.restore),
            cpus=config.cpus,
            memory=config.memory,
            vcpus=tuple(Vcpu(each.id, each.exits) for each in vcpus),
        )

    def _pause(self, call: Call) -> Status:
        if not self._holding:
            self._machine.pause()
            self._holding = True
        return self._status(call)

    def _resume(self, call: Call) -> Status:
        if self._machine.strayed:
            self._machine.take_back()
            return self._status(call)
        if not self._holding:
            others = " by you; somebody else holds it" if self._machine.paused else ""
            raise UserError(f"the machine is not paused{others}", "see its status")
        self._holding = False
        self._machine.resume()
        return self._status(call)

    def _reset(self, call: Call) -> Status:
        self._machine.end(Ending.RESET)
        return self._status(call)

    def _stop(self, call: Call) -> Status:
        if call.parameters["how"] == "power-button":
            self._machine.press_power_button()
        else:
            self._machine.end(Ending.QUIT)
        return self._status(call)

    def _snapshot(self, _call: Call) -> Generator[None, None, Snapshot]:
        return Snapshot(*(yield from self._machine.snapshot()))

    def _dump(self, call: Call) -> Generator[None, None, Status]:
        yield from self._machine.dump_memory(call.fds[0])
        return self._status(call)

    def _metrics(self, _call: Call) -> Text:
        machine = self._machine
        return metrics.text(machine.counters(), self.name, paused=machine.paused)

    def _counters(self, call: Call) -> dict[str, Any]:
        status = typed_json.encode(self._status(call))
        return {"status": status, **metrics.values(self._machine.counters())}

    def _attach(self, name: str, _call: Call) -> Feed:
        if name not in self._consoles:
            known = ", ".join(self._consoles) or "pyvmm run has none, for a COMMAND"
            raise UserError(f"there is no console {name}", f"there is: {known}")
        return self._consoles[name].feed()

    def _migrate(self, call: Call) -> Status:
        downtime = call.parameters["downtime"]
        if not (downtime.isascii() and downtime.isdigit() and 0 < len(downtime) < 10):
            raise UserError(f"downtime: {downtime[:40]!r} is no number of milliseconds")
        sockets = []
        try:
            sockets += [socket.socket(socket.AF_UNIX, fileno=os.dup(fd)) for fd in call.fds]
            self._machine.migrate(sockets, int(downtime) / 1000)
        except BaseException as error:
            for each in sockets:
                each.close()
            if isinstance(error, OSError):
                raise UserError(f"a descriptor is no socket: {error.strerror}") from error
            raise
        return self._status(call)

    def _feed_events(self, _call: Call) -> Feed:
        return self._events.feed()

    def close(self) -> None:
        """Tell clients that the machine has ended, and remove the socket. Idempotent."""
        self._owned.close()


def _both(one: Callable[[], object], other: Callable[[], object]) -> None:
    one()
    other()


def _listener(control: ControlConfig, name: str) -> Listener:
    if control.path is not None:
        return Listener(control.path, f"--control {control.path}", OWNER_ONLY)
    return Listener(socket_of(name), f"--name {name}", OWNER_ONLY)
