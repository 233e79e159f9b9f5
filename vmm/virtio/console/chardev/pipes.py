"""A pair of pipes: the far end of a guest's port is in this process (`vmm.terminal.console`).

    guest's port --output_fd--> pipe --> fileno, drain      StdioConsole --> standard output
                 <--input_fd--- pipe <-- receive                         <-- standard input

What is in the pipes is the kernel's to keep, and their being full is what makes others wait.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm.virtio.console.chardev.chardev import Chardev

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Loop

SYSRQ: Final = b"\x0f"
"""Ctrl-O, which is what a console without breaks has for Magic SysRq (Linux's hvc_console)."""


class PipeChardev(Chardev):
    """Both ends: the port's, and an `OutputSource` and `InputSink` of `vmm.terminal.console`."""

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
        """Return what is readable while the guest's bytes wait."""
        return self._source

    def drain(self, limit: int) -> bytes:
        """Take up to *limit* of the guest's bytes."""
        try:
            return os.read(self._source, limit)
        except BlockingIOError:
            return b""

    def receive(self, data: bytes) -> int:
        """Take what there is room for; return how many bytes that was."""
        try:
            taken = os.write(self._sink, data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            self._loop.add_writer(self._sink, self._space)
        return taken

    def _space(self) -> None:
        self._loop.remove_writer(self._sink)
        self.on_space()

    def receive_break(self) -> bool:
        """Take what stands for a break."""
        return self.receive(SYSRQ) == 1

    def resize(self, columns: int, rows: int) -> None:
        """Say how large the terminal is now."""
        self.size = columns, rows
        self.on_resize()

    def close(self) -> None:
        """Close all ends. Idempotent."""
        super().close()
        for fd in (self._source, self._sink):
            if fd >= 0:
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
                os.close(fd)
        self._source = self._sink = -1
