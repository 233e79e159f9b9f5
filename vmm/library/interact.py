"""Join a machine's console to this process's terminal, or to its pipes."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import TYPE_CHECKING, Final

from vmm import thread
from vmm.terminal.raw_mode import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.library.machine import Machine

CHUNK: Final = 4096
DETACH: Final = 0x1D
"""C-], as telnet has it: leave the console, and let the machine run."""


def interact(machine: Machine) -> str | None:
    """Copy standard input to *machine*'s console and its output to standard output.

    Returns how the machine ended, or None after C-] on a terminal, which is in raw mode. The end of
    standard input ends nothing. Raises the error that the machine ended with.
    """
    left = Event()
    with ExitStack() as owned:
        machine.console.copy_to(_write)
        owned.callback(machine.console.copy_to, None)
        if sys.stdin is not None:
            fd = sys.stdin.fileno()
            has_terminal = os.isatty(fd)
            if has_terminal:
                owned.enter_context(_raw(fd))
            thread.start("vmm-stdin", _type, machine, fd, left.set if has_terminal else None)
        machine.wait_for_end(left)
    return None if left.is_set() and machine.ending is None else machine.wait()


def _type(machine: Machine, fd: int, leave: Callable[[], None] | None) -> None:
    while machine.ending is None and (data := os.read(fd, CHUNK)):
        if leave is not None and DETACH in data:
            leave()
            return
        machine.console.send(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    terminal = Terminal(fd)
    former = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTTIN, signal.SIGTTOU)]
    try:
        terminal.make_raw()
        yield
    finally:
        terminal.restore()
        for number, handler in zip((signal.SIGTTIN, signal.SIGTTOU), former, strict=True):
            signal.signal(number, handler)
