"""The watchdog: find vCPUs that spin with interrupts off, and say where they are.

    every SECONDS / SAMPLES   hold the vCPU for a moment: is PSTATE.I set, and is it not in WFI?
    SAMPLES times yes         it is stuck: an event and a line, with registers and a backtrace
    one time no               it is not, or no longer

Such a vCPU never takes its timer's interrupt: neither its kernel's scheduler nor its own watchdog
runs there. A kernel masks interrupts for microseconds, so samples of a healthy one differ.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from vmm.arm64.register_names import id_of
from vmm.debug.memory import DebugMemory
from vmm.debug.registers import Registers
from vmm.debug.symbols import NONE, read
from vmm.errors import GuestError, VmmError

if TYPE_CHECKING:
    from vmm.config.watchdog import WatchdogConfig
    from vmm.events import Events
    from vmm.kvm.vcpu import Vcpu
    from vmm.loop import Loop
    from vmm.machine.machine import Machine
    from vmm.machine.power_cycle import PowerCycle

SAMPLES: Final = 8
"""How often a vCPU is looked at before it counts as stuck. If a healthy one is caught with
interrupts off one time in ten, all eight are one case in 10**8."""

DEPTH: Final = 16
"""Frames of a backtrace."""

_I: Final = 1 << 7
_WFI: Final = 0xD503_207F.to_bytes(4, "little")
_ALL: Final = (1 << 64) - 1


class Watchdog:
    """Look at the vCPUs of *machine*, in the loop's thread. Construct it before the machine runs.

    Raises `UserError`: there are no symbols where *config* has them.
    """

    def __init__(
        self, config: WatchdogConfig, machine: Machine, loop: Loop, events: Events
    ) -> None:
        self._machine = machine
        self._loop = loop
        self._events = events
        self._seconds = config.milliseconds / 1000
        self._symbols = read(config.symbols, config.option) if config.symbols else NONE
        self._memory = DebugMemory(machine.space.memory, machine.ledger)
        self._counts: dict[int, int] = {}
        self._exits: dict[int, int] = {}
        self._cycle: PowerCycle | None = None
        machine.watchers.append(self)
        self._next()

    def begin(self, cycle: PowerCycle) -> None:
        """Take the vCPUs of *cycle*, which are about to start."""
        self._cycle = cycle
        self._counts.clear()

    def end(self) -> None:
        """Let go of the vCPUs, which have ended."""
        self._cycle = None

    def _next(self) -> None:
        self._loop.call_later(self._seconds / SAMPLES, self._look)

    def _look(self) -> None:
        """Look at each vCPU, unless the machine stands still: somebody looks at it already."""
        self._next()
        if self._cycle is None or self._machine.paused:
            return
        self._memory.forget()
        for index in range(len(self._cycle.vcpus)):
            with suppress(VmmError):  # it has just ended, or is late
                self._sample(self._cycle, index)

    def _sample(self, cycle: PowerCycle, index: int) -> None:
        thread, vcpu = cycle.threads[index], cycle.vcpus[index]
        if thread.held:  # by a debugger
            return
        thread.hold()
        try:
            thread.wait_paused()
            registers = Registers(vcpu)
            if registers.is_off():
                self._counts[index] = 0
                return
            masked = self._masked(vcpu, registers)
            count = self._counts.get(index, 0) + 1 if masked else 0
            if count == 1:
                self._exits[index] = vcpu.exits
            was, self._counts[index] = self._counts.get(index, 0), count
            if count == SAMPLES:
                self._tell(index, vcpu, registers)
            elif was >= SAMPLES and not count:
                self._events.emit("vcpu-goes-on", vcpu=index)
                self._machine.say(f"watchdog: vCPU {index} goes on")
        finally:
            thread.release()

    def _masked(self, vcpu: Vcpu, registers: Registers) -> bool:
        """Return whether *vcpu* runs with interrupts off. Waiting in WFI with them off is idle."""
        pstate = vcpu.get_one_reg(id_of("pstate"))
        if not pstate & _I:
            return False
        with suppress(GuestError):
            code = self._memory.read(registers.regime(), registers.pc - 4 & _ALL, 8)
            return _WFI not in (code[:4], code[4:])
        return True

    def _tell(self, index: int, vcpu: Vcpu, registers: Registers) -> None:
        """Report vCPU *index* as stuck."""

        def get(name: str) -> int:
            return vcpu.get_one_reg(id_of(name))

        self._symbols.slide(get("VBAR_EL1"))
        frames = [registers.pc, *self._callers(registers, get("x29"), get("x30"))]
        names = [self._symbols.name(frame) for frame in frames]
        facts: dict[str, Any] = {
            name: get(name) for name in ("pstate", "ESR_EL1", "FAR_EL1", "ELR_EL1", "SP_EL1")
        }
        exits = vcpu.exits - self._exits.get(index, 0)
        self._events.emit(
            "vcpu-stuck",
            vcpu=index,
            pc=registers.pc,
            seconds=self._seconds,
            exits=exits,
            backtrace=names,
            **{name.lower(): value for name, value in facts.items()},
        )
        self._machine.say(
            f"watchdog: vCPU {index} has run with interrupts off for {self._seconds:g} s, at "
            f"{names[0]} (PC {registers.pc:#x}); {exits} exits to pyvmm since"
        )
        if len(names) > 1:
            self._machine.say(f"watchdog: called from {', '.join(names[1:])}")
        self._machine.say(
            "watchdog: " + ", ".join(f"{name} {value:#x}" for name, value in facts.items())
        )

    def _callers(self, registers: Registers, fp: int, lr: int) -> list[int]:
        """Return return addresses: x30, and those of the frame records that x29 leads to.

        Frame records are pairs of the caller's x29 and x30 (AAPCS64, section 6.4.6).
        """
        found = [registers.code_address(lr)]
        regime = registers.regime()
        with suppress(GuestError):
            while fp and not fp & 15 and len(found) < DEPTH:
                record = self._memory.read(regime, fp, 16)
                caller, address = (int.from_bytes(record[at : at + 8], "little") for at in (0, 8))
                if not address:
                    break
                if (plain := registers.code_address(address)) != found[-1]:
                    found.append(plain)
                if caller <= fp:  # stacks grow down: a caller's record is above
                    break
                fp = caller
        return found
