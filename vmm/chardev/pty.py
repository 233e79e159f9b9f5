"""A pseudo-terminal that a terminal program (screen, minicom, socat) can open."""

from __future__ import annotations

import os
import select
import termios
from typing import TYPE_CHECKING, Final

from vmm.chardev.chardev import Chardev
from vmm.errors import HostError
from vmm.terminal import raw_modes

if TYPE_CHECKING:
    from vmm.loop import Cancellable, Loop

LOOK_AGAIN: Final = 0.25
"""Seconds between looks at whether somebody has opened it: no event tells."""


class PtyChardev(Chardev):
    """The master's side; `path` is what to open. Raises `HostError`, which names *option*."""

    def __init__(self, loop: Loop, option: str) -> None:
        super().__init__(loop)
        self._timer: Cancellable | None = None
        try:
            self._master, slave = os.openpty()
        except OSError as error:
            raise HostError(
                f"{option}: no pseudo-terminal: {error.strerror}", "is /dev/pts mounted?"
            ) from error
        os.set_blocking(self._master, False)
        self.path = os.ttyname(slave)
        """What to open."""
        # Nothing is echoed back to the guest. The modes stay; the hang-up tells nobody is there.
        termios.tcsetattr(slave, termios.TCSANOW, raw_modes(termios.tcgetattr(slave)))
        os.close(slave)

    def start(self) -> None:
        """Begin to look."""
        self._timer = None
        if self._master < 0 or self.connected:
            return
        poll = select.poll()
        poll.register(self._master, 0)
        if poll.poll(0):  # hung up
            self._timer = self._loop.call_later(LOOK_AGAIN, self.start)
        else:
            # Numbers of their own, so that hanging up may close them.
            self.input_fd = self.output_fd = os.dup(self._master)
            self.on_change(None)

    def hang_up(self, error: OSError | None = None) -> None:  # noqa: ARG002  (EIO: it is closed)
        """Go back to looking."""
        super().hang_up()
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_AGAIN, self.start)

    def close(self) -> None:
        """Close it: who has it open sees the end. Idempotent."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        fd, self._master = self._master, -1
        if fd >= 0:
            os.close(fd)
