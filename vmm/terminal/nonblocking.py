"""Write to a descriptor that others share, without ever blocking.

O_NONBLOCK belongs to the open file description, which standard output shares with the shell and
with every program of the pipeline. Setting it breaks those programs, and it stays set if we are
killed. So terminals and pipes are opened again for ourselves. Sockets cannot be opened again, but
take MSG_DONTWAIT with each call. Regular files never make a writer wait.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from vmm.closeable import Closeable

if TYPE_CHECKING:
    import socket

PTMX = os.makedev(5, 2)
"""The master of a pseudo-terminal: opening it again makes a new pair."""


class NonblockingWriter(Closeable):
    """Own another descriptor for the file behind *fd*, which stays open and unchanged.

    Raises OSError if *fd* is not open.
    """

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self._socket: socket.socket | None = None
        self._blocked_before = False
        if stat.S_ISREG(status.st_mode):
            self._fd = os.dup(fd)  # opened again, it would start at offset 0
        elif stat.S_ISSOCK(status.st_mode):
            import socket

            self._fd = os.dup(fd)
            self._socket = socket.socket(fileno=self._fd)
            self._send_flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        else:
            self._fd = self._open_again(fd, status)

    def _open_again(self, fd: int, status: os.stat_result) -> int:
        try:
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == PTMX:
                raise PermissionError  # as for other files that cannot be opened again
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:  # after su the terminal is another user's; a pipe's reader has gone; ...
            own = os.dup(fd)
            self._blocked_before = os.get_blocking(own)
            os.set_blocking(own, False)
            return own

    def fileno(self) -> int:
        """Return a descriptor that polls writable when `write` accepts something."""
        return self._fd

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write what goes without waiting; return how many bytes that was, perhaps 0.

        Raises OSError if the file accepts nothing any more: EPIPE, EIO, ENOSPC...
        """
        try:
            if self._socket is not None:
                return self._socket.send(data, self._send_flags)
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close our descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if self._socket is not None:
            self._socket.close()
        elif fd >= 0:
            if self._blocked_before:
                os.set_blocking(fd, True)
            os.close(fd)
