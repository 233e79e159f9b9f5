"""The Arm PrimeCell real time clock, PL031 (DDI 0224): seconds since 1970, and one alarm.

    DR = host's time + offset        the guest sets the offset by storing to LR
    DR == MR  --> RIS --> IMSC --> interrupt

The clock runs from power-on, as if firmware had enabled it in CR.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.irq import InterruptLine
    from vmm.loop import CallLater, Cancellable

SIZE = 0x1000
"""Bytes of guest physical address space."""

# Register offsets: table 3-1.
RTCDR = 0x000
RTCMR = 0x004
RTCLR = 0x008
RTCCR = 0x00C
RTCIMSC = 0x010
RTCRIS = 0x014
RTCMIS = 0x018
RTCICR = 0x01C
RTCPeriphID0 = 0xFE0

IDENTIFICATION = bytes((0x31, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1))
"""RTCPeriphID0-3 and RTCPCellID0-3: part 0x031, designer 0x41 (Arm), revision 1."""

WORD = 0xFFFF_FFFF


@dataclass(frozen=True)
class Pl031State:
    """A clock's state.

    offset   seconds from the host's time to the guest's
    loaded   LR
    match    MR
    mask     IMSC
    raw      RIS
    alarm    the host's time, in seconds since 1970, at which RIS is set; None: no alarm is ahead
    """

    offset: int
    loaded: int
    match: int
    mask: int
    raw: int
    alarm: int | None


class Pl031:
    """One real time clock, as a bus device.

    *call_later* (`Loop.call_later`) runs the alarm's timer. *clock* returns the host's time in
    seconds since 1970.
    """

    def __init__(
        self,
        line: InterruptLine,
        call_later: CallLater,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._line = line
        self._call_later = call_later
        self._clock = clock
        self._lock = Lock()
        self._offset = 0
        self._load_value = 0
        self._match = 0
        self._mask = 0
        self._raw = 0
        self._level = False
        self._timer: Cancellable | None = None
        self._due = 0  # host's time, seconds

    def reset(self) -> None:
        """Clear the alarm. The time goes on, as a battery keeps it on real machines."""
        with self._lock:
            self._match = self._mask = self._raw = 0
            self._stop_timer()
            self._update()

    def state(self) -> Pl031State:
        """Return the state."""
        with self._lock:
            alarm = None if self._timer is None else self._due
            return Pl031State(
                self._offset, self._load_value, self._match, self._mask, self._raw, alarm
            )

    def restore(self, state: Pl031State) -> None:
        """Take over *state*, before the first access.

        The clock shows the time of now. An alarm that was due meanwhile is raised.
        """
        with self._lock:
            self._offset, self._load_value = state.offset, state.loaded & WORD
            self._match, self._mask, self._raw = state.match & WORD, state.mask & 1, state.raw & 1
            if state.alarm is not None:
                self._due = state.alarm
                left = state.alarm - self._clock()
                if left > 0:
                    self._timer = self._call_later(left, self._expired)
                else:
                    self._raw = 1
            self._update()

    def close(self) -> None:
        """Stop the alarm's timer."""
        with self._lock:
            self._stop_timer()

    def read(self, offset: int, size: int) -> int:
        """Return a register. Reserved and misaligned offsets read as zero."""
        with self._lock:
            return self._load(offset) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002  (words only)
        """Write a register. Stores to reserved and read-only offsets are dropped."""
        value &= WORD
        with self._lock:
            if offset == RTCMR:
                self._match = value
                self._start_timer()
            elif offset == RTCLR:
                self._load_value = value
                self._offset = value - int(self._clock())
                self._start_timer()
            elif offset == RTCIMSC:
                self._mask = value & 1
            elif offset == RTCICR and value & 1:
                self._raw = 0
            self._update()

    def _load(self, offset: int) -> int:
        if offset == RTCDR:
            return (int(self._clock()) + self._offset) & WORD
        if offset >= RTCPeriphID0 and offset % 4 == 0 and offset < SIZE:
            return IDENTIFICATION[(offset - RTCPeriphID0) // 4]
        return {
            RTCMR: self._match,
            RTCLR: self._load_value,
            RTCCR: 1,
            RTCIMSC: self._mask,
            RTCRIS: self._raw,
            RTCMIS: self._raw & self._mask,
        }.get(offset, 0)

    def _start_timer(self) -> None:
        """Start a timer for the second in which DR equals MR: now, or up to 136 years ahead."""
        self._stop_timer()
        now = int(self._clock())
        self._due = now + ((self._match - now - self._offset) & WORD)
        if self._due == now:
            self._raw = 1
        else:
            self._timer = self._call_later(self._due - self._clock(), self._expired)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        with self._lock:
            if self._timer is None:  # stopped meanwhile
                return
            left = self._due - self._clock()
            if left > 0:  # the host's clock was set back, or the guest moved the alarm
                self._stop_timer()
                self._timer = self._call_later(left, self._expired)
                return
            self._timer = None
            self._raw = 1
            self._update()

    def _update(self) -> None:
        level = bool(self._raw & self._mask)
        if level != self._level:
            self._level = level
            self._line.set_level(level)
