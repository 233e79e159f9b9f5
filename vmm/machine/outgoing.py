"""Move the guest of a running machine to another host: live migration, the source's end.

    thread      offer -> answer -> rounds of pages ----------> rest -> ready, go -> running
    loop                  logs on                    pause, collect                         end

The guest stays here whatever fails before ``go``. From then on the destination may run it, so this
machine stays paused until that one has said so.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from vmm import thread
from vmm.arm64 import layout
from vmm.dirty_pages import SHIFT
from vmm.errors import HostError, UserError, VmmError, host_errors
from vmm.kvm.dirty_log import DirtyLog
from vmm.machine import snapshot
from vmm.state.migration_messages import (
    FORMAT,
    VERSION,
    Answer,
    Failed,
    Go,
    Join,
    Memory,
    Offer,
    Ready,
    Rest,
    Running,
)
from vmm.state.precopy import Precopy
from vmm.state.stream import Channel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from vmm.coherence.ledger import Ledger
    from vmm.config import MachineConfig
    from vmm.events import Events
    from vmm.kvm.system import System
    from vmm.loop import Loop
    from vmm.machine.address_space import AddressSpace
    from vmm.machine.power_cycle import PowerCycle
    from vmm.machine.snapshot import Described, Parts
    from vmm.state.precopy import Told
    from vmm.state.visible_cpu import VisibleCpu

OPTION: Final = "migrate"
PEER: Final = "the destination"

PATIENCE: Final = 10.0
"""Seconds in which a destination that has failed has to let go of the disks."""

PERIOD: Final = 0.05
"""Seconds: vCPUs that are throttled rest for a share of each."""

T = TypeVar("T")


class Gone(NamedTuple):
    """A guest that runs elsewhere.

    downtime    seconds from the pause to the destination's word that the guest runs, by this
                host's clock
    elsewhere   the same, to the time of the destination's clock: right if both clocks agree
    maintained  bytes that were cleaned and invalidated before they were read here
    there       bytes that were after they were written there
    """

    seconds: float
    downtime: float
    elsewhere: float
    rounds: int
    raw: int
    zero: int
    wire: int
    maintained: int
    there: int


class Origin(Protocol):
    """The part of a machine that moves: `vmm.machine.machine.Machine`. In the loop's thread."""

    space: AddressSpace
    power: PowerCycle | None

    def pause(self) -> None:
        """Hold the machine."""

    def resume(self) -> None:
        """Let it go on."""

    def parts(self) -> Parts:
        """Return what it consists of."""

    @property
    def counter(self) -> int | None:
        """The virtual counter at which the guest stands."""


class Outgoing:
    """Move the guest of *machine* over the connected *sockets*; `start` begins.

    *described* is *config* for the destination. *goal*: seconds that the guest may stand still.
    *seen*: what the guest was shown of the CPU; None: ask this host. *on_end* is called in the
    loop's thread, with `Gone` or an error.

    Raises `UserError` if the machine has what cannot be moved, and `HostError`.
    """

    def __init__(  # noqa: PLR0913  (what a machine has)
        self,
        machine: Origin,
        config: MachineConfig,
        described: Described,
        sockets: Sequence[socket.socket],
        *,
        system: System,
        loop: Loop,
        events: Events,
        goal: float,
        ledger: Ledger,
        seen: VisibleCpu | None,
        on_end: Callable[[Gone | VmmError], None],
    ) -> None:
        self._machine, self._config, self._system = machine, config, system
        self._described = described
        self._loop, self._events, self._on_end = loop, events, on_end
        self._goal, self._ledger, self._seen = goal, ledger, seen
        snapshot.check(config, machine.parts().virtio, OPTION)
        assert machine.power is not None, "the machine runs"
        self._cycle = machine.power
        self._ram = machine.space.ram_region
        self._own = machine.space.memory.dirty
        slot = self._cycle.slots.find(layout.RAM)
        assert slot is not None, "RAM has a slot"
        self._log = DirtyLog(self._cycle.vm, self._cycle.slots, slot, self._own.pages)
        self._logging = self._held = self._lent = False
        self.gave_up = False
        """Whether the destination may run the guest: then nobody else may."""
        self.ended = False
        """Whether all is over; the guest is here, paused, if nobody has let it go on."""
        self._cancelled = Event()
        self._share = 0.0
        self._throttles = False
        self._began = time.monotonic()
        self._paused_at = self._paused_time = 0.0
        self._channels = [Channel(each, PEER) for each in sockets]
        self._precopy = Precopy(
            self._ram,
            self._log,
            self._own,
            ledger,
            self._channels,
            goal=goal,
            tell=self._tell,
            throttle=self._set_throttle,
        )

    def start(self) -> None:
        """Begin, in a thread. Raises `HostError`."""
        thread.start("migrate", self._run)

    def end(self) -> None:
        """Let go of the power cycle, whose VM ends. In the loop's thread. Idempotent."""
        self._cancelled.set()
        self._log.forget()
        for channel in self._channels:
            channel.interrupt()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        result: Gone | VmmError
        try:
            result = self._move()
        except VmmError as error:
            result = error
            self._tell_failure(error)
        except Exception as error:  # noqa: BLE001  (the guest goes on whatever it is)
            result = HostError(f"{OPTION}: {type(error).__name__}: {error}")
            self._tell_failure(result)
        self._share = 0.0
        for channel in self._channels:
            channel.interrupt()
            channel.close()
        if self._lent and not self.gave_up:
            self._await_disks()
        self.ended = True
        self._loop.call_soon_threadsafe(lambda: self._on_end(result))

    def _move(self) -> Gone:
        first = self._channels[0]
        self._greet(first)
        self._in_loop(self._begin)
        self._precopy.run()
        rest = self._in_loop(self._hold)
        self._precopy.collect()
        self._precopy.finish()
        first.send(rest)
        ready = first.receive(Ready)
        self._check_alive()
        self.gave_up = True
        first.send(Go())
        running = first.receive(Running)
        return self._gone(ready, running)

    def _await_disks(self) -> None:
        """Wait until the destination lets go of the disks; it has locked them before `Ready`."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not self._cancelled.wait(PERIOD):
            with suppress(UserError):
                self._take_back()
                return

    def _take_back(self) -> None:
        for disk in snapshot.disks(self._machine.parts().virtio):
            disk.take_back()

    def _gone(self, ready: Ready, running: Running) -> Gone:
        now = time.monotonic()
        moved = [channel.moved for channel in self._channels]
        return Gone(
            seconds=now - self._began,
            downtime=now - self._paused_at,
            elsewhere=running.time - self._paused_time,
            rounds=self._precopy.number,
            raw=sum(each.raw for each in moved),
            zero=sum(each.zero for each in moved),
            wire=sum(each.wire for each in moved),
            maintained=self._precopy.maintained,
            there=ready.maintained,
        )

    def _greet(self, first: Channel) -> None:
        """Agree with the destination before a page moves."""
        seen = self._seen or snapshot.shown(self._config, self._system)
        ledger = [entry.as_json() for entry in self._ledger]
        token = os.urandom(8).hex()
        first.send(
            Offer(
                FORMAT,
                VERSION,
                seen,
                self._described.configuration,
                Memory(self._ram.base, self._ram.size, 1 << SHIFT),
                ledger,
                len(self._channels),
                token,
            )
        )
        for index, channel in enumerate(self._channels[1:], 1):
            channel.send(Join(token, index))
        answer = first.receive(Answer)
        fwb = [cpu.registers.get("ID_AA64MMFR2_EL1", 0) >> 40 & 15 for cpu in (seen, answer.cpu)]
        if fwb[0] != fwb[1]:
            raise HostError(f"{PEER} took a guest that sees FEAT_S2FWB {fwb[0]} and has {fwb[1]}")

    def _in_loop(self, function: Callable[[], T]) -> T:
        """Call *function* in the loop's thread; return its result."""
        done = Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                self._check_alive()
                results.append(function())
            except BaseException as error:  # noqa: BLE001  (it is raised in the thread)
                errors.append(error)
            done.set()

        self._loop.call_soon_threadsafe(call)
        while not done.wait(1.0):
            self._check_alive()
        if errors:
            raise errors[0]
        return results[0]

    def _check_alive(self) -> None:
        if self._cancelled.is_set():
            raise HostError("the guest was reset, or has ended")

    def _tell(self, told: Told) -> None:
        self._events.emit("migration-round", **told._asdict())

    def _tell_failure(self, error: VmmError) -> None:
        """Tell the destination that the guest stays here, unless that one may run it."""
        if not self.gave_up:
            with suppress(VmmError):
                self._channels[0].send(Failed(error.message, error.hint))

    def _set_throttle(self, share: float) -> None:
        self._share = share
        if share and not self._throttles:
            self._throttles = True
            thread.start("throttle", self._keep_throttled)

    def _keep_throttled(self) -> None:
        while self._share and not self._cancelled.wait(PERIOD):
            for each in self._cycle.threads:
                each.rest(self._share * PERIOD)

    # --- the loop -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Note from now on which pages are written."""
        self._machine.pause()
        try:
            self._log.start()
            self._own.start()
            self._logging = True
        finally:
            self._machine.resume()

    def _hold(self) -> Rest:
        """Pause the guest for good, and return its state: GIC tables go into its memory now."""
        self._share = 0.0
        self._machine.pause()
        self._held = True
        self._paused_at, self._paused_time = time.monotonic(), time.time()
        parts = self._machine.parts()
        state = snapshot.collect(self._cycle, parts, self._machine.counter)
        with host_errors(OPTION):
            files = snapshot.settle(self._described, parts.virtio)
        self._lent = True
        for disk in snapshot.disks(parts.virtio):
            disk.lend()
        return Rest(state, files)

    def go_on(self) -> None:
        """Undo all: the guest stays here. Raises `UserError` if another machine has a disk now."""
        if self._lent:
            self._take_back()
            self._lent = False
        if self._logging:
            self._machine.pause()
            try:
                self._own.stop()
                self._log.stop()
                self._logging = False
            finally:
                self._machine.resume()
        if self._held:
            self._held = False
            self._machine.resume()
