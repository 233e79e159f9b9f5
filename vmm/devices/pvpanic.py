"""pvpanic on MMIO: one register by which a guest's kernel says that it has panicked.

Sources: QEMU's docs/specs/pvpanic.rst; Linux's driver, which binds to "qemu,pvpanic-mmio". Loads
return the events that the guest may report, stores report them.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

from vmm.events import Bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.events import Events

SIZE = 2
"""Bytes of guest physical address space, as in the device tree binding."""


class PanicEvent(IntFlag):
    """Bits of the register: what a guest may report."""

    PANICKED = 1 << 0
    """The guest has panicked, and expects its host to handle that."""
    CRASH_LOADED = 1 << 1
    """The guest has panicked, and handles that by a crash kernel of its own."""


SUPPORTED = PanicEvent.PANICKED | PanicEvent.CRASH_LOADED


class PvPanic:
    """The panic register, as a bus device.

    Each report is an event, "panic". *on_panic* is called when the guest has panicked and expects
    its host to handle it: in the thread of the vCPU that reports, so it must not block.
    """

    def __init__(self, on_panic: Callable[[], None], events: Events) -> None:
        self._on_panic = on_panic
        self._panicked, self._loaded = Bounded(events), Bounded(events)

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002  (one byte, zero-extended)
        """Return the supported events."""
        return int(SUPPORTED) if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002  (as above)
        """Report events. Unknown ones are ignored."""
        if offset or not (report := PanicEvent(value & SUPPORTED)):
            return
        # A guest can go on after any of them, and report without end: each kind has a bound.
        if PanicEvent.PANICKED in report:
            self._panicked.emit("panic", report=report.name)
            self._on_panic()
        else:
            self._loaded.emit("panic", report=report.name)
