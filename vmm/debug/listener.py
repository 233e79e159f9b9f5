"""Sockets that a debugger connects to, from this machine only; a Unix socket is its owner's.

A port of the loopback interface is open to every user of the machine: on one that others use, name
a socket.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.errors import UserError
from vmm.virtio.console.chardev.unix import Listener

if TYPE_CHECKING:
    from vmm.config.gdb import GdbConfig

OWNER_ONLY: Final = 0o600


def listen(config: GdbConfig) -> Listener | PortListener:
    """Return a listening socket for *config*. Raises `UserError`."""
    if config.path is not None:
        return Listener(config.path, config.option, OWNER_ONLY)
    return PortListener(config.port or 0, config.option)


class PortListener(Closeable):
    """A socket that listens on 127.0.0.1, non-blocking. Raises `UserError`, naming *option*."""

    def __init__(self, port: int, option: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(("127.0.0.1", port))
            self.socket.listen(1)
        except OSError as error:
            self.close()
            used = error.errno == errno.EADDRINUSE
            why = "another program has the port" if used else error.strerror or str(error)
            raise UserError(f"{option}: {why}", "use another port") from error

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.socket.close()
