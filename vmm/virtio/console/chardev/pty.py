"""A pseudo-terminal that a terminal program (screen, minicom, socat) can open."""

from __future__ import annotations

import os
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError
from vmm.terminal.raw_mode import raw_modes
from vmm.virtio.console.chardev.chardev import Chardev, is_gone

if TYPE_CHECKING:
    from vmm.loop import Cancellable, Loop

LOOK_AGAIN: Final = 0.25
"""Seconds between checks whether somebody has opened it, which no event reports."""


def open_pty(option: str) -> tuple[int, str]:
    """Return the master of a new pseudo-terminal, non-blocking, and the name of its other side.

    Raises `HostError`, which names *option*.
    """
    master = -1
    try:
        master, slave = os.openpty()
        try:
            os.set_blocking(master, False)
            # Raw, so that nothing is echoed back to the guest. The modes outlive the close, and
            # the hang-up then shows that nobody has it open.
            termios.tcsetattr(slave, termios.TCSANOW, raw_modes(termios.tcgetattr(slave)))
            return master, os.ttyname(slave)
        finally:
            os.close(slave)
    except (OSError, termios.error) as error:
        if master >= 0:
            os.close(master)
        raise HostError(
            f"{option}: no pseudo-terminal: {error.args[1]}", "is /dev/pts mounted?"
        ) from error


class PtyChardev(Chardev):
    """The master of a pseudo-terminal; `path` names its other side.

    Raises `HostError`, which names *option*.
    """

    def __init__(self, loop: Loop, option: str) -> None:
        super().__init__(loop)
        self._timer: Cancellable | None = None
        self._master = -1
        try:
            self._master, self.path = open_pty(option)
        except HostError:
            self.close()
            raise

    def start(self) -> None:
        """Connect if somebody has opened it; else check again later."""
        self._timer = None
        if self._master < 0 or self.connected:
            return
        if not is_gone(self._master):
            with suppress(OSError):  # no descriptors left now
                # A descriptor of its own, which hanging up may close.
                self.input_fd = self.output_fd = os.dup(self._master)
        if self.connected:
            self.on_change(None)
        else:
            self._timer = self._loop.call_later(LOOK_AGAIN, self.start)

    def hang_up(self, error: OSError | None = None) -> None:  # noqa: ARG002  (EIO: it is closed)
        """Disconnect, and check again later."""
        super().hang_up()
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_AGAIN, self.start)

    def close(self) -> None:
        """Close the master, which ends the other side. Idempotent."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        fd, self._master = self._master, -1
        if fd >= 0:
            os.close(fd)
