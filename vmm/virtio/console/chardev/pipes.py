"""A pair of pipes: the far end of the guest's port is in this process (`vmm.terminal.console`).

    guest's port --output_fd--> pipe --> fileno, drain      StdioConsole --> standard output
                 <--input_fd--- pipe <-- receive                         <-- standard input

The kernel keeps the bytes; a full pipe makes its writer wait.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm.virtio.console.chardev.chardev import Chardev

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Loop

SYSRQ: Final = b"\x0f"
"""Ctrl-O: Magic SysRq on a console without breaks (Linux's hvc_console)."""


class PipeChardev(Chardev):
    """Both ends: a port's chardev, and `OutputSource` and `InputSink` of `vmm.terminal.console`."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.on_space: Callable[[], object] = lambda: None
        """Called when `receive` has room again."""
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._source = self._sink = -1
        try:
            self._source, self.output_fd = os.pipe2(flags)
            self.input_fd, self._sink = os.pipe2(flags)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable while bytes of the guest wait."""
        return self._source

    def drain(self, limit: int) -> bytes:
        """Return up to *limit* bytes of the guest; b"": none wait."""
        try:
            return os.read(self._source, limit)
        except BlockingIOError:
            return b""

    def receive(self, data: bytes) -> int:
        """Accept what there is room for; return how many bytes that was."""
        try:
            taken = os.write(self._sink, data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            self._loop.add_writer(self._sink, self._space)
        return taken

    def hang_up_after_input(self) -> None:
        """Disconnect from the guest once it has read what was received. Nothing can follow."""
        self._close_far_ends()
        self.on_input()

    def _space(self) -> None:
        self._loop.remove_writer(self._sink)
        self.on_space()

    def receive_break(self) -> bool:
        """Accept a break, as `SYSRQ`; return whether there was room."""
        return self.receive(SYSRQ) == 1

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of the terminal."""
        self.size = columns, rows
        self.on_resize()

    def close(self) -> None:
        """Close all ends. Idempotent."""
        super().close()
        self._close_far_ends()

    def _close_far_ends(self) -> None:
        for fd in (self._source, self._sink):
            if fd >= 0:
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
                os.close(fd)
        self._source = self._sink = -1
