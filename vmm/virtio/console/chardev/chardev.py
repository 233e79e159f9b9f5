"""What all ends of a console port have in common: descriptors that come and go.

    nobody there --connected()--> bytes move both ways --hang_up()--> nobody there

Whoever moves the bytes does so with the descriptors themselves, which never block, and asks to
be called when that may go on. All of it happens in the loop's thread.
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
"""Seconds between looks at whether somebody is still there of whom no event tells."""

URGENT: Final = 256
"""Writes of other threads that may wait for the loop: vCPUs can make more than it gets done."""


class Chardev(Closeable):
    """One end. Owns its descriptors: *input_fd* has bytes for the guest, *output_fd* takes its.

    Either is -1 while nobody is there, or if it goes only one way.
    """

    size: tuple[int, int] | None = None
    """Columns and rows, if it is somebody's terminal."""

    path: str = ""
    """What a user has to open, if it was made here and they cannot know its name."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.input_fd = self.output_fd = -1
        self.input_over = False
        """Whether they will send nothing more."""
        self._urgent: deque[bytes] = deque()
        self.leaving = False
        """Whether `on_change` has yet to tell that somebody has gone."""
        self.on_change: Callable[[OSError | None], object] = lambda _error: None
        """Called when somebody has come, or has gone; perhaps because of an error."""
        self.on_input: Callable[[], object] = lambda: None
        """Called once after `want_input`, when bytes wait or the end has come."""
        self.on_room: Callable[[], object] = lambda: None
        """Called once after `want_room`, when bytes can be written."""
        self.on_resize: Callable[[], object] = lambda: None
        """Called when `size` has changed."""

    @property
    def connected(self) -> bool:
        """Whether anybody is there."""
        return self.input_fd >= 0 or self.output_fd >= 0

    def start(self) -> None:
        """Begin to wait for somebody, once the callbacks are set."""

    def want_input(self) -> None:
        """Ask for one call of `on_input`."""
        if self.input_fd >= 0:
            self._loop.add_reader(self.input_fd, self._input)

    def _input(self) -> None:
        self._loop.remove_reader(self.input_fd)
        self.on_input()

    def want_room(self) -> None:
        """Ask for one call of `on_room`, or hang up if nobody will ever read."""
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
        """Write what there is room for now, if not too much waits already; from any thread."""
        if len(self._urgent) < URGENT:
            self._urgent.append(data)
            self._loop.call_soon_threadsafe(self._write)

    def _write(self) -> None:
        data = self._urgent.popleft()
        if self.output_fd >= 0:
            with suppress(OSError):
                os.write(self.output_fd, data)

    def input_ended(self) -> None:
        """Say that no more input comes. Whoever sent it may still read, until they hang up."""
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
        """Let go of who is there, for they have gone, or broke. `on_change` comes later."""
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
        """Close everything. Idempotent."""
        self._let_go()


def is_gone(fd: int) -> bool:
    """Tell whether the other side of *fd* has hung up; what it wrote before may still wait."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always told
    return bool(poll.poll(0))
