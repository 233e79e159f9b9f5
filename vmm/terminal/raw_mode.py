"""The user's terminal in raw mode, and back as it was: at the end, on errors, on deadly signals.

Only kill -9 leaves it raw; ``stty sane`` (typed blindly, ended with ^J) repairs that.
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
"""End a process that doesn't handle them. (SIGINT does it by an exception, in Python.)"""


class Terminal:
    """One terminal that somebody else opened.

    Whoever uses it has SIGTTIN and SIGTTOU ignored, and asks `is_foreground` before it reads.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._former: list[Any] | None = None

    @property
    def raw(self) -> bool:
        """Whether it is in raw mode by our doing."""
        return self._former is not None

    def is_foreground(self) -> bool:
        """Whether this process may read from the terminal, and change its modes.

        A background job may not: the terminal is the shell's. A terminal that doesn't control
        this process at all has no jobs.
        """
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True

    def make_raw(self) -> None:
        """Pass all keys on as they are, echo nothing, leave output alone.

        Once more does no harm, and good if a shell has changed the modes meanwhile. Raises
        termios.error if the terminal has gone.
        """
        former = self._former or termios.tcgetattr(self._fd)
        if self._former is None:
            self._prepare_for_death()
        self._former = former
        # Now, not after draining: draining waits for as long as the terminal is stopped.
        termios.tcsetattr(self._fd, termios.TCSANOW, raw_modes(former))

    def _prepare_for_death(self) -> None:
        atexit.register(self.restore)
        if current_thread() is main_thread():
            for signum in DEADLY:
                if signal.getsignal(signum) is signal.SIG_DFL:
                    signal.signal(signum, self._restore_and_die)

    def restore(self) -> None:
        """Put back the modes that `make_raw` found. Idempotent; a vanished terminal is fine."""
        former, self._former = self._former, None
        if former is None:
            return
        # In the background, the shell has already set the modes that it wants.
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
        os.kill(os.getpid(), signum)


def raw_modes(modes: list[Any]) -> list[Any]:
    """Return *modes* (of `termios.tcgetattr`) with everything off that touches a byte."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = modes
    iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    oflag &= ~termios.OPOST
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0  # a read returns with the first byte
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
