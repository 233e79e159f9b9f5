"""The Arm PrimeCell general purpose I/O, PL061 (DDI 0190): eight lines, of which some are keys.

    DATA   a load or store touches the lines whose bits are set in its address, [9:2]
    a line's edge or level --> RIS --> IE --> interrupt

Keys press input lines. What the guest does with lines that it makes outputs is kept, and moves
nothing. The test registers, ITCR and on, are not there.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (typed_json reads the annotations)
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

from vmm.typed_json import Hex  # noqa: TC001

if TYPE_CHECKING:
    from vmm.irq import InterruptLine
    from vmm.loop import CallLater

SIZE: Final = 0x1000
"""Bytes of guest physical address space."""

# Register offsets: table 3-1.
GPIODATA_END: Final = 0x400
GPIODIR: Final = 0x400
GPIOIS: Final = 0x404
GPIOIBE: Final = 0x408
GPIOIEV: Final = 0x40C
GPIOIE: Final = 0x410
GPIORIS: Final = 0x414
GPIOMIS: Final = 0x418
GPIOIC: Final = 0x41C
GPIOAFSEL: Final = 0x420
GPIOPeriphID0: Final = 0xFE0

IDENTIFICATION: Final = bytes((0x61, 0x10, 0x04, 0x00, 0x0D, 0xF0, 0x05, 0xB1))
"""GPIOPeriphID0-3 and GPIOPCellID0-3: part 0x061, designer 0x41 (Arm), revision 0."""

PRESSED: Final = 0.1
"""Seconds that a key is pressed for: Linux's gpio-keys looks 5 ms after the edge."""

LINES: Final = 0xFF


REGISTERS: Final = {
    GPIODIR: "GPIODIR",
    GPIOIS: "GPIOIS",
    GPIOIBE: "GPIOIBE",
    GPIOIEV: "GPIOIEV",
    GPIOIE: "GPIOIE",
    GPIOAFSEL: "GPIOAFSEL",
}
"""Registers that keep what is stored to them."""

NAMES: Final = ("GPIODATA", *REGISTERS.values(), "GPIORIS")


@dataclass(frozen=True)
class Pl061State:
    """The registers by their names; GPIODATA has what was stored to it, GPIORIS edges alone.

    No key is pressed.
    """

    registers: Mapping[str, Hex]


RESET: Final = Pl061State(dict.fromkeys(NAMES, 0))


class Pl061:
    """One GPIO, as a bus device. *call_later* (`Loop.call_later`) lets go of keys."""

    def __init__(self, line: InterruptLine, call_later: CallLater) -> None:
        self._line = line
        self._call_later = call_later
        self._lock = Lock()
        self._inputs = 0
        self._asserted = False
        self._set(RESET)

    def _set(self, state: Pl061State) -> None:
        if set(state.registers) != set(NAMES):
            raise ValueError(f"registers: {', '.join(state.registers)}, not {', '.join(NAMES)}")
        self._values = {name: value & LINES for name, value in state.registers.items()}

    def reset(self) -> None:
        """Take all registers to their reset values."""
        with self._lock:
            self._set(RESET)
            self._update()

    def state(self) -> Pl061State:
        """Return the state, without keys that are pressed."""
        with self._lock:
            return Pl061State(dict(self._values))

    def restore(self, state: Pl061State) -> None:
        """Take over *state*, before the first access. Raises ValueError: it has other registers."""
        with self._lock:
            self._set(state)
            self._update()

    def press(self, key: int) -> bool:
        """Press the key at line *key* for `PRESSED` seconds. Return whether the guest listens.

        In the loop's thread.
        """
        with self._lock:
            listens = bool(self._values["GPIOIE"] >> key & 1)
            self._change(self._inputs | 1 << key)
        self._call_later(PRESSED, lambda: self._release(key))
        return listens

    def _release(self, key: int) -> None:
        with self._lock:
            self._change(self._inputs & ~(1 << key))

    def _change(self, inputs: int) -> None:
        """Take new levels of the input lines: their edges may be interrupts."""
        values = self._values
        changed, self._inputs = inputs ^ self._inputs, inputs
        wanted = values["GPIOIBE"] | ~(values["GPIOIEV"] ^ inputs)
        values["GPIORIS"] |= changed & wanted & ~values["GPIOIS"] & LINES
        self._update()

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002  (a register, zero-extended)
        """Return the register at *offset*; 0 where there is none."""
        with self._lock:
            if offset < GPIODATA_END:
                outputs = self._values["GPIODIR"]
                lines = (self._values["GPIODATA"] & outputs) | (self._inputs & ~outputs)
                return lines & offset >> 2
            if offset in REGISTERS:
                return self._values[REGISTERS[offset]]
            if offset >= GPIOPeriphID0 and offset % 4 == 0 and offset < SIZE:
                return IDENTIFICATION[(offset - GPIOPeriphID0) // 4]
            raised = self._raised()
            return {GPIORIS: raised, GPIOMIS: raised & self._values["GPIOIE"]}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002  (as above)
        """Store *value* to the register at *offset*."""
        values = self._values
        with self._lock:
            if offset < GPIODATA_END:
                mask = offset >> 2 & LINES
                values["GPIODATA"] = (values["GPIODATA"] & ~mask) | (value & mask)
            elif offset in REGISTERS:
                values[REGISTERS[offset]] = value & LINES
            elif offset == GPIOIC:
                values["GPIORIS"] &= ~value
            self._update()

    def _raised(self) -> int:
        """Return RIS: edges that were seen, and lines at the level that interrupts."""
        at_level = ~(self._inputs ^ self._values["GPIOIEV"]) & self._values["GPIOIS"]
        return (self._values["GPIORIS"] | at_level) & LINES

    def _update(self) -> None:
        asserted = bool(self._raised() & self._values["GPIOIE"])
        if asserted != self._asserted:
            self._asserted = asserted
            self._line.set_level(asserted)
