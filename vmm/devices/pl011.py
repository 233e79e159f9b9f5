"""The Arm PrimeCell UART, PL011 (DDI 0183, revision r1p5: 32-byte FIFOs).

    guest store to DR --> Transmitter (a ring that a console empties)
                                             user --> receive() --> FIFO --> guest load from DR

The transmitter may live in C, and C then answers some accesses without calling this class: see
`Pl011.use`. All state that C changes by itself is one running count of bytes and one "full", so the
two cannot disagree.

Registers for baud rate, parity and word length keep their value and have no effect: bytes arrive at
once. This has two consequences, both within the specification's timing:

- the transmit FIFO looks empty unless the ring is full, and BUSY is never set;
- the receive timeout has always elapsed: RTRIS is raised while anything waits in the FIFO.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping  # noqa: TC003  (typed_json reads the annotations)
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from vmm.typed_json import Hex  # noqa: TC001  (it reads the annotations)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.irq import InterruptLine
    from vmm.loop import CallLater

SIZE = 0x1000
"""Bytes of guest physical address space."""

FIFO_DEPTH = 32
SETTLE = 1.0
"""Seconds after which a guest that has enabled the receiver but no interrupt counts as polling."""

# Register offsets: table 3-1. "UART" and the register's name, as the manual spells them.
UARTDR = 0x000
UARTRSR = 0x004  # reads; writes go to UARTECR at the same offset
UARTFR = 0x018
UARTILPR = 0x020
UARTIBRD = 0x024
UARTFBRD = 0x028
UARTLCR_H = 0x02C
UARTCR = 0x030
UARTIFLS = 0x034
UARTIMSC = 0x038
UARTRIS = 0x03C
UARTMIS = 0x040
UARTICR = 0x044
UARTDMACR = 0x048

# Error bits of a received word (3.3.1).
DR_BE = 1 << 10
DR_OE = 1 << 11

# Flag register (3.3.3).
FR_CTS = 1 << 0
FR_DSR = 1 << 1
FR_DCD = 1 << 2
FR_RXFE = 1 << 4
FR_TXFF = 1 << 5
FR_RXFF = 1 << 6
FR_TXFE = 1 << 7
FR_RI = 1 << 8

LCR_H_FEN = 1 << 4

# Control register (3.3.8).
CR_UARTEN = 1 << 0
CR_LBE = 1 << 7
CR_RXE = 1 << 9
CR_DTR = 1 << 10
CR_RTS = 1 << 11
CR_OUT1 = 1 << 12
CR_OUT2 = 1 << 13

# Interrupts: the same bits in IMSC, RIS, MIS and ICR (3.3.10).
INT_RI = 1 << 0
INT_CTS = 1 << 1
INT_DCD = 1 << 2
INT_DSR = 1 << 3
INT_RX = 1 << 4
INT_TX = 1 << 5
INT_RT = 1 << 6
INT_RECEIVE = INT_RX | INT_RT
INT_BE = 1 << 9
INT_OE = 1 << 10

# Registers that keep what is written: offset -> (bits that exist, value after reset).
STORED = {
    UARTILPR: (0xFF, 0),
    UARTIBRD: (0xFFFF, 0),
    UARTFBRD: (0x3F, 0),
    UARTLCR_H: (0xFF, 0),
    UARTCR: (0xFF87, 0x300),
    UARTIFLS: (0x3F, 0x12),
    UARTIMSC: (0x7FF, 0),
    UARTDMACR: (0x7, 0),
}

REGISTERS = {
    UARTILPR: "UARTILPR",
    UARTIBRD: "UARTIBRD",
    UARTFBRD: "UARTFBRD",
    UARTLCR_H: "UARTLCR_H",
    UARTCR: "UARTCR",
    UARTIFLS: "UARTIFLS",
    UARTIMSC: "UARTIMSC",
    UARTDMACR: "UARTDMACR",
}
"""Names of the registers that keep what is written, by offset."""

WORD = 0xFFF
"""Bits of a received word: eight of data, four of errors (3.3.1)."""

# UARTPeriphID0-3 and UARTPCellID0-3: part 0x011, designer 0x41 (Arm), revision 3 = r1p5, by
# which Linux and edk2 know that the FIFOs have 32 bytes.
IDENTIFICATION = {
    0xFE0 + 4 * index: byte
    for index, byte in enumerate((0x11, 0x10, 0x34, 0x00, 0x0D, 0xF0, 0x05, 0xB1))
}

TRIGGER_LEVELS = (4, 8, 16, 24, 28, 28, 28, 28)
"""Bytes in the FIFO for each value of RXIFLSEL; 5-7 are reserved."""

# Each modem input: its flag, its interrupt, and the output that loopback connects it to (3.3.8).
MODEM = (
    (FR_RI, INT_RI, CR_OUT2),
    (FR_CTS, INT_CTS, CR_RTS),
    (FR_DCD, INT_DCD, CR_OUT1),
    (FR_DSR, INT_DSR, CR_DTR),
)
CONNECTED = FR_CTS | FR_DSR | FR_DCD
"""The modem inputs: a peer is always connected and ready."""


NOT_ANNOUNCED = (-1, False)


@dataclass(frozen=True)
class Pl011State:
    """A UART's state. What the transmitter has is not the device's any more.

    registers  those that keep what is written, by name
    fifo       received words, oldest first
    latched    raw interrupts that only ICR clears
    errors     RSR
    overrun    whether the next word will have DR_OE
    sent       whether TXRIS is raised as soon as the transmitter has room
    """

    registers: Mapping[str, Hex]
    fifo: tuple[Hex, ...]
    latched: Hex
    errors: Hex
    overrun: bool
    sent: bool


class Transmitter(Protocol):
    """The consumer of transmitted bytes. Thread-safe, never blocks.

    `full` must leave room for FIFO_DEPTH more bytes: after TXRIS a driver may store half a FIFO
    without looking at TXFF again, as Linux does. Only a guest that ignores TXFF exceeds that room;
    what it stores then may be dropped, as by the chip.
    """

    @property
    def written(self) -> int:
        """How many bytes were ever taken, by `put` or by the fast path."""

    def full(self) -> bool:
        """Whether FR is to have TXFF."""

    def put(self, byte: int, /) -> object:
        """Take one byte."""


class Fastpath(Protocol):
    """What answers some accesses without this class, by register offset: see `Pl011.use`.

    `vmm.kvm.mmio_fastpath.DeviceFastpath` does, in C. `set_value` and `take_stores` are called with
    the device's lock held, before the state that they announce takes effect.
    """

    def add_sink(self, offset: int) -> None:
        """Put the low byte of stores into the transmitter, while stores are taken."""

    def add_shadow(self, offset: int, value: int, flip_when_full: int) -> None:
        """Answer loads with *value*; with those bits flipped while the transmitter is full."""

    def add_unchanged(self, offset: int, value: int) -> None:
        """Drop stores of *value*."""

    def set_value(self, offset: int, value: int) -> None:
        """Replace the value at *offset*."""

    def take_stores(self, take: bool) -> None:  # noqa: FBT001  (says what, like a setter)
        """Take stores, or leave them to `Pl011.write`.

        Looking at this and taking the byte are one step, under the transmitter's lock.
        """


class Pl011:
    """One UART, as a bus device.

    *call_later* (`Loop.call_later`) ends the delay that `receive` describes; None: no delay.

    Set ``on_space()`` before the first access. It is called when there is room again after
    `receive` or `receive_break` took too little: from any thread, without the device's lock.
    """

    def __init__(
        self,
        line: InterruptLine,
        transmitter: Transmitter,
        *,
        call_later: CallLater | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_space: Callable[[], object] = lambda: None
        self._fastpath: Fastpath | None = None
        self._line = line
        self._transmitter = transmitter
        self._call_later = call_later
        self._clock = clock
        self._lock = Lock()
        self._fifo: deque[int] = deque()
        self._starved = False  # there is more input than was taken
        self._timer_runs = False
        self._level = False
        self._shadow = NOT_ANNOUNCED
        self._computed = {
            UARTDR: self._pop,
            UARTRSR: lambda: self._errors,
            UARTFR: self._fr,
            UARTRIS: self._ris,
            UARTMIS: self._mis,
        }
        self._power_on()

    def _power_on(self) -> None:
        self._stored = {offset: reset for offset, (_, reset) in STORED.items()}
        self._fifo.clear()
        self._latched = 0  # raw interrupts that only ICR clears
        self._errors = 0  # RSR
        self._overrun = False  # the next word will have DR_OE
        self._looped = 0  # bytes sent to ourselves
        self._acknowledged = self._transmitter.written  # bytes sent when ICR last cleared TXRIS
        self._settled_at = 0.0
        self._mask_changed()

    def reset(self) -> None:
        """Do what the reset input does: registers as in table 3-1, FIFOs empty, interrupt low."""
        with self._lock:
            self._power_on()
            self._update()

    def state(self) -> Pl011State:
        """Return the state, while no vCPU runs."""
        with self._lock:
            return Pl011State(
                registers={REGISTERS[offset]: value for offset, value in self._stored.items()},
                fifo=tuple(self._fifo),
                latched=self._latched,
                errors=self._errors,
                overrun=self._overrun,
                sent=self._sent() != self._acknowledged,
            )

    def restore(self, state: Pl011State) -> None:
        """Take over *state*, before the first access. Raises ValueError if no UART can have it."""
        if state.registers.keys() != set(REGISTERS.values()):
            raise ValueError(f"the registers are not {', '.join(REGISTERS.values())}")
        if len(state.fifo) > FIFO_DEPTH:
            raise ValueError(f"the FIFO has {len(state.fifo)} words and not up to {FIFO_DEPTH}")
        with self._lock:
            for offset, (mask, _) in STORED.items():
                self._stored[offset] = state.registers[REGISTERS[offset]] & mask
            self._fifo.extend(word & WORD for word in state.fifo)
            self._latched = state.latched & STORED[UARTIMSC][0]
            self._errors = state.errors & WORD >> 8
            self._overrun = state.overrun
            self._acknowledged = self._sent() - int(state.sent)
            self._mask_changed()
            self._update()

    def use(self, fastpath: Fastpath) -> None:
        """Let *fastpath* answer some accesses, and keep it up to date. Before the first access.

        - Loads of FR: the flags, with TXFE and TXFF flipped while the transmitter is full.
        - Stores to DR, while `Fastpath.take_stores` says so.
        - Stores to IMSC of the value it holds, which are dropped. Linux stores it after each piece
          of a line (pl011_stop_tx), and it has no effect.
        """
        with self._lock:
            flags, _ = self._shadow_now()
            fastpath.add_sink(UARTDR)
            fastpath.add_shadow(UARTFR, flags, FR_TXFE | FR_TXFF)
            fastpath.add_unchanged(UARTIMSC, self._stored[UARTIMSC])
            self._fastpath = fastpath
            self._shadow = NOT_ANNOUNCED
            self._update()

    # Guest side

    def read(self, offset: int, size: int) -> int:
        """Return a register. Reserved and misaligned offsets read as zero."""
        with self._lock:
            value = self._load(offset)
            self._update()
            hungry = self._hungry()
        if hungry:
            self.on_space()
        return value & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002  (low bits decide)
        """Write a register. Stores to reserved and read-only offsets are dropped."""
        with self._lock:
            self._store(offset, value)
            self._update()
            hungry = self._hungry()
        if hungry:
            self.on_space()

    def _load(self, offset: int) -> int:
        if (computed := self._computed.get(offset)) is not None:
            return computed()
        return self._stored.get(offset) or IDENTIFICATION.get(offset, 0)

    def _fr(self) -> int:
        return self._flags() ^ (FR_TXFE | FR_TXFF if self._transmitter.full() else 0)

    def _mis(self) -> int:
        return self._ris() & self._stored[UARTIMSC]

    def _store(self, offset: int, value: int) -> None:
        if offset == UARTDR:
            self._transmit(value & 0xFF)
        elif offset == UARTRSR:  # UARTECR: any value clears
            self._errors = 0
        elif offset == UARTICR:
            self._latched &= ~value
            # While the transmitter is full TXRIS is low, and its next rise must not be lost.
            if value & INT_TX and not self._transmitter.full():
                self._acknowledged = self._sent()
        elif offset == UARTCR:
            self._control(value & STORED[UARTCR][0])
        elif offset in STORED:
            self._stored[offset] = value & STORED[offset][0]
            if offset == UARTIMSC:
                self._mask_changed()
                if value & INT_RECEIVE and self._receiver_on():
                    self._settled_at = 0.0

    def _control(self, value: int) -> None:
        modem, receiver = self._modem(), self._receiver_on()
        self._stored[UARTCR] = value
        for flag, interrupt, _ in MODEM:
            if (modem ^ self._modem()) & flag:
                self._latched |= interrupt
        if self._receiver_on() and not receiver:
            hold = self._call_later and not self._stored[UARTIMSC] & INT_RECEIVE
            self._settled_at = self._clock() + SETTLE if hold else 0.0
            if self._starved:
                self._wait_until_settled()

    def _transmit(self, byte: int) -> None:
        # Sent even while UARTEN or TXE is 0: earlycon enables nothing, relying on firmware.
        if not self._stored[UARTCR] & CR_LBE:
            self._transmitter.put(byte)
            return
        self._looped += 1
        if len(self._fifo) < self._depth():
            self._push(byte)
        else:
            self._overrun = True
            self._errors |= DR_OE >> 8
            self._latched |= INT_OE

    # User side

    def receive(self, data: bytes) -> int:
        """Put what fits of *data* into the FIFO; return the number of bytes taken.

        If that is not all, ``on_space`` is called when to offer the rest.

        Nothing is taken while the receiver is off (UARTEN, RXE), nor from then on until a receive
        interrupt is unmasked. Linux enables the UART with its receiver for each boot message, and
        when the port is opened it empties the FIFO before it unmasks (pl011_enable_interrupts):
        input from a pipe would lose its beginning. A guest that polls gets input SETTLE seconds
        after it enabled the receiver.
        """
        with self._lock:
            taken = min(len(data), self._room())
            for byte in data[:taken]:
                self._push(byte)
            self._starved = taken < len(data)
            if self._starved and self._receiver_on():
                self._wait_until_settled()
            self._update()
        return taken

    def receive_break(self) -> bool:
        """Put a break condition, one word, into the FIFO; return False if there is no room.

        Linux treats a break and the key that follows as Magic SysRq.
        """
        with self._lock:
            taken = self._room() > 0
            self._starved = not taken
            if taken:
                self._push(DR_BE)
                self._latched |= INT_BE
            elif self._receiver_on():
                self._wait_until_settled()
            self._update()
        return taken

    def transmit_space(self) -> None:
        """Update TXRIS after the transmitter was full and has been drained.

        Whoever drains calls this after each such drain.
        """
        with self._lock:
            self._update()

    def _hungry(self) -> bool:
        """Return whether to call ``on_space`` now.

        Not at the first free byte: a wake-up for each byte would be slow. Not only when the FIFO is
        empty: a guest may read down to the trigger level and wait for RXRIS.
        """
        if self._starved and len(self._fifo) < self._trigger() and self._receiving():
            self._starved = False
            return True
        return False

    def _room(self) -> int:
        return max(0, self._depth() - len(self._fifo)) if self._receiving() else 0

    def _receiver_on(self) -> bool:
        # Loopback disconnects the input pin.
        return self._stored[UARTCR] & (CR_UARTEN | CR_RXE | CR_LBE) == CR_UARTEN | CR_RXE

    def _receiving(self) -> bool:
        return self._receiver_on() and (not self._settled_at or self._clock() >= self._settled_at)

    def _wait_until_settled(self) -> None:
        pause = self._settled_at - self._clock()
        if self._call_later and self._settled_at and pause > 0 and not self._timer_runs:
            self._timer_runs = True
            self._call_later(pause, self._settled)

    def _settled(self) -> None:
        with self._lock:
            self._timer_runs = False
            if self._starved and self._receiver_on():  # perhaps re-enabled meanwhile
                self._wait_until_settled()
            hungry = self._hungry()
        if hungry:
            self.on_space()

    # Receive FIFO

    def _depth(self) -> int:
        return FIFO_DEPTH if self._stored[UARTLCR_H] & LCR_H_FEN else 1

    def _trigger(self) -> int:
        if self._stored[UARTLCR_H] & LCR_H_FEN:
            return TRIGGER_LEVELS[self._stored[UARTIFLS] >> 3]
        return 1

    def _push(self, word: int) -> None:
        if self._overrun:
            word |= DR_OE
            self._overrun = False
        self._fifo.append(word)

    def _pop(self) -> int:
        word = self._fifo.popleft() if self._fifo else 0
        self._errors = word >> 8
        return word

    # Outputs

    def _modem(self) -> int:
        control = self._stored[UARTCR]
        if not control & CR_LBE:
            return CONNECTED
        return sum(flag for flag, _, output in MODEM if control & output)

    def _flags(self) -> int:
        """Return FR as it is while the transmitter has room."""
        flags = self._modem() | FR_TXFE
        if not self._fifo:
            flags |= FR_RXFE
        if len(self._fifo) >= self._depth():
            flags |= FR_RXFF
        return flags

    def _sent(self) -> int:
        return self._transmitter.written + self._looped

    def _ris(self) -> int:
        """Return RIS.

        RXRIS and RTRIS follow the FIFO's level, and ICR does not clear them: on the chip, too, both
        would return 32 bit times later while data is left in the FIFO. TXRIS is a transition
        (2.8.3): it rises when bytes that were written have left the FIFO.
        """
        raw = self._latched
        if self._fifo:
            raw |= INT_RT
            if len(self._fifo) >= self._trigger():
                raw |= INT_RX
        if self._sent() != self._acknowledged and not self._transmitter.full():
            raw |= INT_TX
        return raw

    def _update(self) -> None:
        """Update the fast path, then the interrupt line."""
        shadow = self._shadow_now()
        if self._fastpath is not None and shadow != self._shadow:
            self._shadow = shadow
            flags, stores = shadow
            self._fastpath.set_value(UARTFR, flags)
            self._fastpath.take_stores(stores)
        level = bool(self._ris() & self._stored[UARTIMSC])
        if level != self._level:
            self._level = level
            self._line.set_level(level)

    def _shadow_now(self) -> tuple[int, bool]:
        """Return FR's flags for the fast path, and whether it may take stores to DR."""
        # A store that would raise the interrupt has to come to Python, as has loopback's.
        silent = not self._stored[UARTIMSC] & INT_TX or self._sent() != self._acknowledged
        return self._flags(), silent and not self._stored[UARTCR] & CR_LBE

    def _mask_changed(self) -> None:
        if self._fastpath is not None:
            self._fastpath.set_value(UARTIMSC, self._stored[UARTIMSC])
