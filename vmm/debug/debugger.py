"""Run control of a machine for a debugger: stop all vCPUs, look, let chosen ones go on.

               go()                     a debug exit, interrupt(), the guest's end
    stopped ----------> running --------------------------------------------------> stopped

All-stop: when one vCPU stops, all do. Everything here is called in the loop's thread. What stops a
vCPU is a fault of the instruction at PC, so a stop that is not reported is not lost: the
instruction faults again. The exception is a step, of which there is one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.arm64.debug_registers import Counts
from vmm.arm64.esr import exception_class
from vmm.arm64.exception_entry import take_synchronous
from vmm.debug.breakpoints import NAMES, Breakpoints
from vmm.debug.memory import DebugMemory
from vmm.debug.registers import Registers
from vmm.errors import GuestError, HostError, VmmError
from vmm.kvm.capability import Cap
from vmm.machine.machine import Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.events import Events
    from vmm.kvm.exits import Debug
    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm
    from vmm.loop import Loop
    from vmm.machine.machine import Machine
    from vmm.machine.power_cycle import PowerCycle

EC_BREAKPOINT: Final = 0x30
EC_WATCHPOINT: Final = 0x34
EC_BRK: Final = 0x3C
"""ESR_EL2.EC of debug exits (KVM has the guest at a lower exception level)."""

SIGINT: Final = 2
SIGTRAP: Final = 5
SIGABRT: Final = 6
SIGTERM: Final = 15
"""Signals by gdb's numbers: what a stop looks like to it."""

_BRK_MASK: Final = 0xFFE0_001F
_BRK: Final = 0xD420_0000

SHOWN: Final = {
    Ending.PANICKED: SIGABRT,
    Ending.CRASHED: SIGABRT,
    Ending.RESET: SIGTERM,
}
"""The guest's own endings at which a debugger may look at it first. A power-off is meant."""


class Stop(NamedTuple):
    """Why the machine stands still.

    vcpu    the index of the vCPU that the user is to see
    signal  gdb's number
    reason  a stop reply's ``n:r;`` pairs
    text    a line for the user; empty: gdb says it all
    """

    vcpu: int
    signal: int
    reason: str = ""
    text: str = ""


def _counts(vm: Vm) -> Counts:
    """Return how many debug registers KVM lets a debugger have. Raises `HostError`."""
    if not vm.check_extension(Cap.SET_GUEST_DEBUG):
        raise HostError("--gdb: this host's KVM has no KVM_SET_GUEST_DEBUG", "use a newer kernel")
    return Counts(
        vm.check_extension(Cap.GUEST_DEBUG_HW_BPS), vm.check_extension(Cap.GUEST_DEBUG_HW_WPS)
    )


class Debugger:
    """Stop and start the vCPUs of *machine*, which knows it as `Machine.debugger`.

    on_stop  called when the machine has stopped without being asked; None: nobody looks, so nothing
             stops it
    """

    def __init__(self, machine: Machine, loop: Loop, events: Events) -> None:
        self._machine = machine
        self._loop = loop
        self._events = events
        self._cycle: PowerCycle | None = None
        self._breakpoints: Breakpoints | None = None
        self._registers: dict[int, Registers] = {}
        self._end: Callable[[], None] | None = None  # what the user looks at the guest before
        self._looked = False  # the user has seen that the power cycle ends
        self.on_stop: Callable[[Stop], None] | None = None
        self.stopped = False
        self.memory = DebugMemory(machine.space.memory, machine.ledger)

    # --- the machine's side ---------------------------------------------------------------------

    def begin(self, cycle: PowerCycle) -> None:
        """Take the vCPUs of *cycle*, which are about to start."""
        self._cycle, self._looked = cycle, False
        self._registers.clear()
        self.memory.forget()
        if self._breakpoints is None:
            self._breakpoints = Breakpoints(self.memory, _counts(cycle.vm))
        self._breakpoints.forget_soft()
        cycle.on_debug = lambda vcpu, _exit: self._loop.call_soon_threadsafe(
            lambda: self._on_debug(cycle, vcpu)
        )
        if self._breakpoints.debug(step=False).enabled:
            for vcpu in cycle.vcpus:
                vcpu.set_guest_debug(self._breakpoints.debug(step=False))

    def end(self) -> None:
        """Let go of the vCPUs, which have ended."""
        self._cycle = self._end = None
        self._registers.clear()

    def delays(self, ending: Ending | Exception, end: Callable[[], None]) -> bool:
        """Stop the machine at the guest's own *ending*, if somebody looks; *end* ends it."""
        if self.on_stop is None or self._looked or not isinstance(ending, Ending):
            return False
        if ending not in SHOWN or self._cycle is None:
            return False
        if self._end is None:
            self._end = end
            text = self._machine.told(ending)
            self._stop(Stop(0, SHOWN[ending], text=f"{text}; it ends when you continue"))
        return True

    def _on_debug(self, cycle: PowerCycle, index: int) -> None:
        """Take a debug exit of vCPU *index*, which is held."""
        if cycle is not self._cycle or self.stopped:
            return
        thread = cycle.threads[index]
        if (exit_ := thread.debug) is None:
            return
        try:
            thread.wait_paused()
            stop = self._meaning(index, exit_)
        except VmmError as error:
            stop = Stop(index, SIGTRAP, text=str(error))
        if stop is not None and self.on_stop is not None:
            self._stop(stop)
        else:
            thread.release()

    def _meaning(self, index: int, exit_: Debug) -> Stop | None:
        """Return why vCPU *index* stopped; None: it can go on. Raises `KvmError`."""
        kind = exception_class(exit_.esr)
        if kind == EC_BRK:
            return self._at_brk(index, exit_.esr)
        if kind == EC_WATCHPOINT and (watch := self.breakpoints.watch_of(exit_.far)):
            return Stop(index, SIGTRAP, f"{NAMES[watch.kind]}:{watch.address:x};")
        return Stop(index, SIGTRAP, "hwbreak:;" if kind == EC_BREAKPOINT else "")

    def _at_brk(self, index: int, esr: int) -> Stop | None:
        """Return the stop of a BRK of ours; None: it was the guest's, which has its exception."""
        registers = self.registers(index)
        try:
            physical = self.memory.locate(registers.regime(), registers.pc).address
            found = int.from_bytes(self.memory.read_physical(physical, 4), "little")
        except GuestError:  # the guest has unmapped it since: the fetch faults again
            return None
        if self.breakpoints.is_soft(physical):
            return Stop(index, SIGTRAP, "swbreak:;")
        if found & _BRK_MASK == _BRK:
            take_synchronous(self.vcpu(index), esr)
        return None

    # --- the user's side ------------------------------------------------------------------------

    @property
    def breakpoints(self) -> Breakpoints:
        """The breakpoints. Raises `GuestError` before the first power-on."""
        if self._breakpoints is None:
            raise GuestError("the machine is not on")
        return self._breakpoints

    @property
    def count(self) -> int:
        """How many vCPUs there are; 0: the machine is off."""
        return 0 if self._cycle is None else len(self._cycle.vcpus)

    def vcpu(self, index: int) -> Vcpu:
        """Return vCPU *index*. Raises `GuestError` if there is none."""
        if self._cycle is None or not 0 <= index < len(self._cycle.vcpus):
            raise GuestError(f"there is no vCPU {index}")
        return self._cycle.vcpus[index]

    def awake(self, preferred: int) -> int:
        """Return *preferred* if that vCPU is on, or else the first that is, or 0."""
        indices = (preferred, *range(self.count)) if self.count else ()
        return next((each for each in indices if not self.registers(each).is_off()), 0)

    def registers(self, index: int) -> Registers:
        """Return the registers of vCPU *index*. Raises `GuestError` if there is none."""
        if index not in self._registers:
            self._registers[index] = Registers(self.vcpu(index))
        return self._registers[index]

    def stop(self) -> None:
        """Stop all vCPUs. Raises `HostError` if one does not leave the guest."""
        if not self.stopped:
            self._machine.pause()
            self.stopped = True

    def _stop(self, stop: Stop) -> None:
        try:
            self.stop()
        except VmmError as error:
            self._events.emit("debugger-failed", error=str(error))
            return
        if self.on_stop is not None:
            self.on_stop(stop)

    def go(self, steps: Mapping[int, bool]) -> None:
        """Let the vCPUs with an index in *steps* go on: for one instruction where that is True.

        The others stay where they are. Raises `GuestError` for a step of a vCPU that is powered
        off, and `KvmError`; the machine then stays stopped.
        """
        if not self.stopped:
            return
        for index, step in steps.items():
            if step and self.registers(index).is_off():
                raise GuestError(f"vCPU {index} is powered off: it has no next instruction")
        vcpus, threads = (self._cycle.vcpus, self._cycle.threads) if self._cycle else ((), ())
        for index, (vcpu, thread) in enumerate(zip(vcpus, threads, strict=True)):
            vcpu.set_guest_debug(self.breakpoints.debug(step=steps.get(index, False)))
            if index in steps:
                thread.release()
            else:
                thread.hold()
        self.memory.forget()
        self.stopped = False
        self._machine.resume()
        if self._end is not None:
            self._looked = True
            self._end()

    def detach(self) -> None:
        """Remove all breakpoints, and let the machine go on. Raises `VmmError`."""
        self.on_stop = None
        self.memory.physical = False
        self.stop()
        if self._breakpoints is not None:
            self._breakpoints.clear()
        self.go(dict.fromkeys(range(self.count), False))

    def kill(self) -> None:
        """End the machine."""
        self.on_stop = None
        self._machine.end(Ending.QUIT)

    def reset(self) -> None:
        """Reset the machine; it stays stopped, before its first instruction."""
        self._looked = True
        self._machine.end(Ending.RESET)
