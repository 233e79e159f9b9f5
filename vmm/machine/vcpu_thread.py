"""vCPU threads: each runs one vCPU and answers its exits.

            start()                      pause()  .--------.
    new -----------> running  <---------------->  | paused |
                        |               resume()  '--------'
                        | stop(), or the guest's own doing -> on_end
                        v
                      ended

A request takes effect at the next exit; the kick makes that be now.
"""

from __future__ import annotations

import time
from enum import Enum
from threading import Condition
from typing import TYPE_CHECKING, Final, Protocol

from vmm import thread
from vmm.errors import GuestError, HostError
from vmm.events import Bounded
from vmm.kvm.exits import (
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
"""Seconds that a vCPU may take to leave the guest; a second is much, even emulated."""

HURRY: Final = 1.0
"""Seconds after which, and again, a vCPU that is late is helped out of what it waits for."""


class Runnable(Protocol):
    """What a thread asks of its vCPU. Tests pass a script of exits instead of KVM's."""

    id: int

    def run(self) -> Exit:
        """Run the guest until an exit."""

    def complete_read(self, value: int, /) -> None:
        """Answer a load."""

    def inject_external_abort(self) -> None:
        """Answer an access that has no answer."""

    def kick(self) -> None:
        """End `run` soon. From any thread."""

    def acknowledge_kick(self) -> None:
        """Let `run` enter the guest again."""


class Request(Enum):
    """What somebody wants of a vCPU thread."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


Reason = SystemEvent | Exception
"""Why a vCPU ended by itself: what the guest asked for, or what went wrong."""


class VcpuThread:
    """Runs *vcpu* in a thread of its own, its loads and stores answered by *bus*.

    *on_end* is called from that thread when it ends for any reason but `stop`.
    """

    def __init__(
        self,
        vcpu: Runnable,
        bus: MmioBus,
        on_end: Callable[[int, Reason], None],
        events: Events,
    ) -> None:
        self.vcpu = vcpu
        self._bus = bus
        self._on_end = on_end
        self._events = Bounded(events)
        self._changed = Condition()
        self._request = Request.RUN
        self._paused = False
        self._thread: Thread | None = None

    # --- from other threads -----------------------------------------------------------------

    def start(self) -> None:
        """Start running. Once. Raises `HostError`: no more threads."""
        self._thread = thread.start(f"vcpu{self.vcpu.id}", self._main)

    def pause(self) -> None:
        """Ask the vCPU to leave the guest and stay out; `wait_paused` tells when it is out."""
        self._ask(Request.PAUSE)

    def wait_paused(self) -> None:
        """Wait until the vCPU is out of the guest, paused or ended. Raises `HostError`."""
        with self._changed:
            if not self._changed.wait_for(self._is_out, STOP_TIMEOUT):
                raise HostError(f"vCPU {self.vcpu.id} did not leave the guest")

    def resume(self) -> None:
        """Let a paused vCPU enter the guest again."""
        self._ask(Request.RUN)

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._ask(Request.STOP)

    def join(self, seconds: float = STOP_TIMEOUT) -> bool:
        """Wait for the thread's end; tell whether it has come, or the thread never began."""
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
        vcpu, run, read, write = self.vcpu, self.vcpu.run, self._bus.read, self._bus.write
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
                    case _:
                        self._answer_odd(exit_)
            except GuestError as error:
                self._complain("guest-error", message=str(error))

    def _obey(self) -> bool:
        """Do what was asked for; False to end."""
        self.vcpu.acknowledge_kick()
        with self._changed:
            if self._request is Request.PAUSE:
                self._paused = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._request is not Request.PAUSE)
                self._paused = False
            return self._request is Request.RUN

    def _complain(self, event: str, **fields: object) -> None:
        self._events.emit(event, vcpu=self.vcpu.id, **fields)

    def _answer_odd(self, exit_: Exit) -> None:
        """Answer what no well-behaved guest causes. Raises `HostError` if it can't go on."""
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
    """Have all *threads* end. Raises `HostError`, which names those that do not.

    cancel_waits  end whatever a vCPU waits for inside an exit; called while a thread is late
    """
    for each in threads:
        each.stop()
    deadline = time.monotonic() + STOP_TIMEOUT
    late = threads
    while late and time.monotonic() < deadline:
        limit = time.monotonic() + HURRY
        late = [each for each in late if not each.join(max(0.0, limit - time.monotonic()))]
        if late:
            cancel_waits()
    if late:
        numbers = ", ".join(str(each.vcpu.id) for each in late)
        raise HostError(
            f"vCPU {numbers} did not leave the guest",
            "it waits for the host: its storage or a device may hang",
        )
