"""Put the user's terminal into raw mode; restore it at the end, on errors and on deadly signals.

Only SIGKILL leaves it raw; ``stty sane`` (typed blindly, ended with ^J) repairs that.
"""

from __future__ import annotations

import atexit
import os
import signal
import termios
from contextlib import suppress
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end a process which does not handle them. (SIGINT is an exception in Python.)"""


class Terminal:
    """A terminal that somebody else opened.

    Its user must ignore SIGTTIN and SIGTTOU, and ask `is_foreground` before reading.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._former: list[Any] | None = None

    @property
    def raw(self) -> bool:
        """Whether `make_raw` has put it into raw mode."""
        return self._former is not None

    def is_foreground(self) -> bool:
        """Return whether this process may read from the terminal and change its modes.

        A background job may not: the terminal is the shell's. A terminal that is not this process's
        controlling terminal has no jobs.
        """
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True

    def make_raw(self) -> None:
        """Pass all keys on as they are, echo nothing, leave output alone. Idempotent.

        Called again, it repairs modes that a shell has changed meanwhile. Raises termios.error if
        the terminal has gone.
        """
        former = self._former or termios.tcgetattr(self._fd)
        if self._former is None:
            self._prepare_for_death()
        self._former = former
        # TCSANOW, because draining would wait for as long as the terminal is stopped.
        termios.tcsetattr(self._fd, termios.TCSANOW, raw_modes(former))

    def _prepare_for_death(self) -> None:
        atexit.register(self.restore)
        if current_thread() is main_thread():
            for signum in DEADLY:
                if signal.getsignal(signum) is signal.SIG_DFL:
                    signal.signal(signum, self._restore_and_die)

    def restore(self) -> None:
        """Restore the modes that `make_raw` found. Idempotent, also if the terminal has gone."""
        former, self._former = self._former, None
        if former is None:
            return
        # If we are in the background, the shell has already set the modes that it wants.
        if self.is_foreground():
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, former)
        atexit.unregister(self.restore)
        if current_thread() is main_thread():
            for signum in DEADLY:
                if signal.getsignal(signum) == self._restore_and_die:
                    signal.signal(signum, signal.SIG_DFL)

    def _restore_and_die(self, signum: int, _frame: FrameType | None) -> None:
        self.restore()
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)  # kill(2) is nothing that a confined process may do


def raw_modes(modes: list[Any]) -> list[Any]:
    """Return *modes* (of `termios.tcgetattr`) without anything that changes a byte."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = modes
    iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    oflag &= ~termios.OPOST
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0  # a read returns with the first byte
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
