"""pvpanic on MMIO: one register by which a guest's kernel says that it has panicked.

QEMU's docs/specs/pvpanic.rst; Linux's driver binds to "qemu,pvpanic-mmio". Loads say which
events the guest may report, stores report them.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 2
"""Bytes of guest physical address space, as in the device tree binding."""

REPORTS: Final = 100
"""How often a guest is heard that goes on after it: it must not fill the host's disk."""


class PanicEvent(IntFlag):
    """What a guest may report."""

    PANICKED = 1 << 0
    """The guest has panicked; its host shall handle it."""
    CRASH_LOADED = 1 << 1
    """The guest has panicked and will handle that itself, by a crash kernel."""


SUPPORTED = PanicEvent.PANICKED | PanicEvent.CRASH_LOADED


class PvPanic:
    """The panic register, as a bus device.

    *on_event* is called in the thread of the vCPU that reports; it must not block. It
    counts without a lock: one more or less is no matter.
    """

    def __init__(self, on_event: Callable[[PanicEvent], None]) -> None:
        self._on_event = on_event
        self._reports = 0

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002  (one byte, zero-extended)
        """Return the supported events."""
        return int(SUPPORTED) if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002  (as above)
        """Report events. Unknown ones are ignored."""
        if offset or not (events := PanicEvent(value & SUPPORTED)):
            return
        if PanicEvent.PANICKED in events:
            self._on_event(events)
        elif self._reports < REPORTS:
            self._reports += 1
            self._on_event(events)
