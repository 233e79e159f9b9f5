"""vCPU threads: each runs one vCPU and handles its exits.

            start()                      pause()  .--------.
    new -----------> running  <---------------->  | paused |
                        |               resume()  '--------'
                        | stop(), or the guest ends it -> on_end
                        v
                      ended

A request takes effect at the next exit; a kick forces one.
"""

from __future__ import annotations

import time
from enum import Enum
from functools import partial
from threading import Condition
from typing import TYPE_CHECKING, Final, Protocol

from vmm import thread
from vmm.errors import GuestError, HostError
from vmm.events import Bounded
from vmm.kvm.exits import (
    Debug,
    Exit,
    Interrupted,
    MemoryFault,
    MmioRead,
    MmioWrite,
    SynchronousExternalAbort,
    SystemEvent,
    Undecodable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Thread

    from vmm.bus import MmioBus
    from vmm.events import Events

STOP_TIMEOUT: Final = 10.0
"""Seconds a vCPU may take to leave the guest. One is plenty, even in an emulated host."""

CANCEL_INTERVAL: Final = 1.0
"""Seconds between calls of `cancel_waits` while a vCPU is late."""


class Runnable(Protocol):
    """The part of a vCPU that its thread uses. Tests pass a script of exits."""

    id: int

    def run(self) -> Exit:
        """Run the guest until an exit."""

    def complete_read(self, value: int, /) -> None:
        """Complete the load that exited with *value*."""

    def inject_external_abort(self) -> None:
        """Inject a synchronous external abort for the access that exited."""

    def kick(self) -> None:
        """Make `run` return. Thread-safe."""

    def acknowledge_kick(self) -> None:
        """Take the kick back, so that `run` enters the guest again."""


class Request(Enum):
    """The state that a vCPU thread is asked to be in."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


Reason = SystemEvent | Exception
"""Why a vCPU ended: the guest's system event, or an error."""


class VcpuThread:
    """Run *vcpu* in a thread; *bus* handles its loads and stores.

    *on_end* is called in that thread when it ends for any reason but `stop`. *on_exit*, if there is
    one, is called in that thread with each exit before it is handled.
    """

    def __init__(
        self,
        vcpu: Runnable,
        bus: MmioBus,
        on_end: Callable[[int, Reason], None],
        events: Events,
        on_exit: Callable[[int, Exit], None] | None = None,
    ) -> None:
        self.vcpu = vcpu
        self._on_exit = on_exit
        self.on_debug: Callable[[int, Debug], None] | None = None
        """Called in the vCPU's thread with a debug exit; the vCPU is then held until `release`."""
        self.debug: Debug | None = None
        """The debug exit that holds the vCPU."""
        self._bus = bus
        self._on_end = on_end
        self._events = Bounded(events)
        self._changed = Condition()
        self._request = Request.RUN
        self._paused = False
        self._held = False
        self._rest = 0.0
        self._thread: Thread | None = None

    # --- from other threads -----------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; call once. Raises `HostError` if the host allows no more threads."""
        self._thread = thread.start(f"vcpu{self.vcpu.id}", self._main, kind=thread.VCPU)

    def pause(self) -> None:
        """Ask the vCPU to leave the guest; `wait_paused` waits until it has."""
        self._ask(Request.PAUSE)

    def wait_paused(self) -> None:
        """Wait until the vCPU is out of the guest, paused or ended. Raises `HostError` if late."""
        with self._changed:
            if not self._changed.wait_for(self._is_out, STOP_TIMEOUT):
                raise HostError(f"vCPU {self.vcpu.id} did not leave the guest")

    def resume(self) -> None:
        """Let a paused vCPU enter the guest again."""
        self._ask(Request.RUN)

    def rest(self, seconds: float) -> None:
        """Keep the vCPU out of the guest for *seconds*; another request ends that at once."""
        with self._changed:
            self._rest = seconds
        self.vcpu.kick()

    def hold(self) -> None:
        """Keep the vCPU out of the guest until `release`, whether or not it is paused."""
        self._hold(held=True)

    def release(self) -> None:
        """Undo `hold`, and forget `debug`: an instruction that caused it runs again."""
        self._hold(held=False)

    @property
    def held(self) -> bool:
        """Whether somebody holds the vCPU: `hold`, or a debug exit."""
        return self._held

    def _hold(self, *, held: bool) -> None:
        with self._changed:
            self._held, self.debug = held, None
            self._changed.notify_all()
        self.vcpu.kick()

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._ask(Request.STOP)

    def join(self, seconds: float = STOP_TIMEOUT) -> bool:
        """Wait for the thread to end; return whether it has, or was never started."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self._runs()

    def _ask(self, request: Request) -> None:
        with self._changed:
            if self._request is not Request.STOP:
                self._request = request
            self._changed.notify_all()
        self.vcpu.kick()

    def _is_out(self) -> bool:
        return self._paused or not self._runs()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            reason: Reason | None = self._run()
        except Exception as error:  # noqa: BLE001  (whatever it is, the machine must hear of it)
            reason = error
        with self._changed:
            self._paused = True  # an ended vCPU is out of the guest for good
            self._changed.notify_all()
        if reason is not None:
            self._on_end(self.vcpu.id, reason)

    def _run(self) -> Reason | None:
        vcpu, read, write = self.vcpu, self._bus.read, self._bus.write
        run = vcpu.run if self._on_exit is None else partial(self._run_told, self._on_exit)
        while True:
            exit_ = run()
            try:
                match exit_:
                    case MmioWrite():
                        write(*exit_)
                    case MmioRead():
                        vcpu.complete_read(read(*exit_))
                    case Interrupted():
                        if not self._obey():
                            return None
                    case SystemEvent():
                        return exit_
                    case Debug() if self.on_debug is not None:
                        if not self._stop_for(exit_, self.on_debug):
                            return None
                    case _:
                        self._answer_odd(exit_)
            except GuestError as error:
                self._complain("guest-error", message=str(error))

    def _run_told(self, on_exit: Callable[[int, Exit], None]) -> Exit:
        exit_ = self.vcpu.run()
        on_exit(self.vcpu.id, exit_)
        return exit_

    def _obey(self) -> bool:
        """Carry out the current request; return False to end the thread."""
        self.vcpu.acknowledge_kick()
        with self._changed:
            if rest := self._rest:
                self._rest = 0.0
                self._changed.wait_for(self._is_asked, rest)
            if self._must_wait():
                self._paused = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._must_wait())
                self._paused = False
            return self._request is Request.RUN

    def _is_asked(self) -> bool:
        return self._request is not Request.RUN or self._held

    def _must_wait(self) -> bool:
        return self._request is Request.PAUSE or (self._request is Request.RUN and self._held)

    def _stop_for(self, exit_: Debug, on_debug: Callable[[int, Debug], None]) -> bool:
        """Hold the vCPU for a debugger; return False to end the thread."""
        with self._changed:
            self._held, self.debug = True, exit_
        on_debug(self.vcpu.id, exit_)
        return self._obey()

    def _complain(self, event: str, **fields: object) -> None:
        self._events.emit(event, vcpu=self.vcpu.id, **fields)

    def _answer_odd(self, exit_: Exit) -> None:
        """Handle an exit that no correct guest causes. Raises `HostError` if it is fatal."""
        match exit_:
            case Undecodable(esr_iss, fault_ipa):
                self._complain("undecodable-access", ipa=fault_ipa, esr_iss=esr_iss)
                self.vcpu.inject_external_abort()
            case SynchronousExternalAbort(_, esr, gva, gpa):
                self._complain("external-abort", esr=esr, gva=gva, ipa=gpa)
                self.vcpu.inject_external_abort()
            case MemoryFault(_, gpa, size):
                raise HostError(
                    f"vCPU {self.vcpu.id}: the host could not resolve the guest's access to "
                    f"[{gpa:#x}, {gpa + size:#x})",
                    "its mapping is gone, or its device's memory is switched off",
                )
            case _:
                raise HostError(
                    f"vCPU {self.vcpu.id}: KVM gave up with {exit_}",
                    "the host's kernel log may say more",
                )


def stop(threads: Sequence[VcpuThread], cancel_waits: Callable[[], object]) -> None:
    """End all *threads*. Raises `HostError`, which names those that do not end.

    *cancel_waits* ends waits inside exits; it is called while a thread is late.
    """
    for each in threads:
        each.stop()
    deadline = time.monotonic() + STOP_TIMEOUT
    late = threads
    while late and time.monotonic() < deadline:
        limit = time.monotonic() + CANCEL_INTERVAL
        late = [each for each in late if not each.join(max(0.0, limit - time.monotonic()))]
        if late:
            cancel_waits()
    if late:
        numbers = ", ".join(str(each.vcpu.id) for each in late)
        raise HostError(
            f"vCPU {numbers} did not leave the guest",
            "it waits for the host: its storage or a device may hang",
        )
