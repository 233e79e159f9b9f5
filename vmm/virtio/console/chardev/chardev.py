"""The base class of all host ends of a console port: descriptors that come and go.

    disconnected --somebody comes--> bytes move both ways --hang_up()--> disconnected

The port moves bytes with the descriptors themselves, which are non-blocking, and asks for a call
when it can continue. All of it happens in the loop's thread.
"""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Loop


LOOK_AGAIN: Final = 0.5
"""Seconds between checks for a peer whose hang-up no event reports."""

URGENT: Final = 256
"""Writes of other threads that may wait for the loop; a vCPU can produce them faster than that."""


class Chardev(Closeable):
    """One host end. Owns its descriptors.

    input_fd   where bytes for the guest come from
    output_fd  where the guest's bytes go to

    Either is -1 while nobody is connected, or if bytes go one way only.
    """

    size: tuple[int, int] | None = None
    """Columns and rows, if the end is a terminal."""

    path: str = ""
    """The name that the user has to open, if it was made up here: a pseudo-terminal's."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.input_fd = self.output_fd = -1
        self.input_over = False
        """Whether the peer sends nothing more."""
        self._urgent: deque[bytes] = deque()
        self.leaving = False
        """Whether `on_change` is still to be called for a peer that has gone."""
        self.on_change: Callable[[OSError | None], object] = lambda _error: None
        """Called when a peer has come or gone; with the error, if one was the reason."""
        self.on_input: Callable[[], object] = lambda: None
        """Called once after `want_input`, when there are bytes or the end of input."""
        self.on_room: Callable[[], object] = lambda: None
        """Called once after `want_room`, when bytes can be written."""
        self.on_resize: Callable[[], object] = lambda: None
        """Called when `size` has changed."""

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self.input_fd >= 0 or self.output_fd >= 0

    def start(self) -> None:
        """Start to wait for a peer, after the callbacks are set."""

    def want_input(self) -> None:
        """Ask for one call of `on_input`."""
        if self.input_fd >= 0:
            self._loop.add_reader(self.input_fd, self._input)

    def _input(self) -> None:
        self._loop.remove_reader(self.input_fd)
        self.on_input()

    def want_room(self) -> None:
        """Ask for one call of `on_room`, or hang up if the peer has gone."""
        if self.output_fd < 0:
            return
        if is_gone(self.output_fd):
            self.hang_up()
        else:
            self._loop.add_writer(self.output_fd, self._room)

    def _room(self) -> None:
        self._loop.remove_writer(self.output_fd)
        self.on_room()

    def write(self, data: bytes) -> None:
        """Write what there is room for; drop it if `URGENT` writes wait already. Thread-safe."""
        if len(self._urgent) < URGENT:
            self._urgent.append(data)
            self._loop.call_soon_threadsafe(self._write)

    def _write(self) -> None:
        data = self._urgent.popleft()
        if self.output_fd >= 0:
            with suppress(OSError):
                os.write(self.output_fd, data)

    def input_ended(self) -> None:
        """Note the end of input. The peer may still read, until it hangs up."""
        self.input_over = True
        if self.output_fd < 0 or is_gone(self.output_fd):
            self.hang_up()
        else:
            fd = self.output_fd
            self._loop.call_later(LOOK_AGAIN, lambda: self._look_again(fd))

    def _look_again(self, fd: int) -> None:
        if self.output_fd == fd and self.input_over:
            self.input_ended()

    def hang_up(self, error: OSError | None = None) -> None:
        """Disconnect a peer that has gone or failed. `on_change` is called later, by the loop."""
        if self._let_go():
            self.leaving = True
            self._loop.call_soon_threadsafe(lambda: self._left(error))

    def _left(self, error: OSError | None) -> None:
        self.leaving = False
        self.on_change(error)

    def _let_go(self) -> bool:
        found = {self.input_fd, self.output_fd} - {-1}
        self.input_over = False
        self.input_fd = self.output_fd = -1
        for fd in found:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)
        return bool(found)

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        self._let_go()


def is_gone(fd: int) -> bool:
    """Return whether the other side of *fd* has hung up. What it wrote before may still wait."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always reported
    return bool(poll.poll(0))
