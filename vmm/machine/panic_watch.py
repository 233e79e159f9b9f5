"""Recognise a Linux panic by the kernel's last words on a console.

Debian's arm64 kernels have no pvpanic driver, so nothing else tells. A panic prints

    Kernel panic - not syncing: REASON
    ---[ end Kernel panic - not syncing: REASON ]---

and nothing more (kernel/panic.c). With panic=-1 the second line does not come: the kernel resets
instead, and, unlike a reboot that was asked for, does not print "reboot: Restarting system".

A guest may print the same words, for example when somebody reads an old log. So a panic counts
only if the console is silent after them, or the guest resets.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Cancellable

SILENCE: Final = 3.0
"""Seconds without output after the last line of a panic."""

PANIC: Final = re.compile(rb"(?<!end )Kernel panic - not syncing: ([^\r\n]*)[\r\n]")
END: Final = re.compile(rb"---\[ end Kernel panic - not syncing: [^\r\n]*\]---\s*\Z")
ORDERLY: Final = b"reboot: Restarting system"

KEPT: Final = 1 << 14
"""Bytes of output that are kept to look at: more than a panic's registers and call trace."""

CHUNK: Final = 1 << 16


class Source(Protocol):
    """Bytes that the guest has sent (`vmm.terminal.console.OutputSource`)."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while bytes wait."""

    def drain(self, limit: int, /) -> bytes:
        """Return up to *limit* bytes; b"": none wait."""


class PanicWatch:
    """Pass on the output of *source*, and look for a panic in it.

    *on_panic* is called with the reason, in the thread that drains. *call_later* is the loop's.
    *is_held* tells whether the machine is paused.
    """

    def __init__(
        self,
        source: Source,
        call_later: Callable[[float, Callable[[], None]], Cancellable],
        on_panic: Callable[[str], None],
        is_held: Callable[[], bool] = lambda: False,
    ) -> None:
        self._source = source
        self._call_later = call_later
        self._on_panic = on_panic
        self._is_held = is_held
        self._backlog = b""
        self._recent = b""
        self._timer: Cancellable | None = None

    def fileno(self) -> int:
        """Return the source's descriptor."""
        return self._source.fileno()

    def drain(self, limit: int, /) -> bytes:
        """Return up to *limit* bytes of output."""
        if self._backlog:
            data, self._backlog = self._backlog[:limit], self._backlog[limit:]
            return data
        data = self._source.drain(limit)
        self._look(data)
        return data

    def reason(self) -> str | None:
        """Return why the kernel panicked; None: it did not.

        For a guest that has just reset: what it sent before that is looked at, and kept for
        `drain`.
        """
        while data := self._source.drain(CHUNK):
            self._backlog += data
            self._look(data)
        found = list(PANIC.finditer(self._recent))
        if not found or ORDERLY in self._recent[found[-1].end() :]:
            return None
        return found[-1][1].decode(errors="replace").strip()

    def restart(self) -> None:
        """Forget what was sent before a reset."""
        self._stop_timer()
        self._recent = b""

    def _look(self, data: bytes) -> None:
        if not data:
            return
        self._stop_timer()
        self._recent = (self._recent + data)[-KEPT:]
        if END.search(self._recent):
            self._timer = self._call_later(SILENCE, self._silent)

    def _silent(self) -> None:
        if self._is_held():  # a guest that is paused says nothing either
            self._timer = self._call_later(SILENCE, self._silent)
            return
        self._timer = None
        if (reason := self.reason()) is not None and END.search(self._recent):
            self._on_panic(reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
