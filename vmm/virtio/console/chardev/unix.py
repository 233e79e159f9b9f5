"""A Unix domain socket that one client at a time may connect to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm import broker
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.virtio.console.chardev.chardev import LOOK_AGAIN, Chardev, is_gone

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.loop import Loop

BACKLOG: Final = 8
"""Clients that may wait in the kernel's queue."""


class Listener(Closeable):
    """A socket that listens on *path*, non-blocking. Raises `UserError`, which names *option*.

    *mode* is who may connect, as chmod(1) has it; the umask takes from it.
    """

    def __init__(self, path: Path, option: str, mode: int = 0o777) -> None:
        self._path = path
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        os.fchmod(self.socket.fileno(), mode)  # before bind(2), which gives the file this mode
        self._broker = broker.current()
        self._debt = 0
        try:
            self._bind()
        except HostError:
            self.close()
            raise
        except OSError as error:
            self.close()
            why = error.strerror or str(error)
            remedy = "name a path where a socket can be made"
            if error.errno == errno.EADDRINUSE:
                why, remedy = "it is in use, or is no socket", "remove it, or name another path"
            raise UserError(f"{option}: {path}: {why}", remedy) from error

    def _bind(self) -> None:
        try:
            self.socket.bind(str(self._path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._is_stale():
                raise
            self._path.unlink()
            self.socket.bind(str(self._path))
        try:
            self._debt = self._broker.owe(
                "socket", str(self._path.absolute()), self._path.stat().st_ino
            )
            self.socket.listen(BACKLOG)
        except BaseException:  # nobody has heard of the debt, or pays it once more, which is well
            with suppress(OSError):
                self._path.unlink()
            raise

    def _is_stale(self) -> bool:
        """Return whether the path is a socket without a listener, because its owner was killed."""
        if not stat.S_ISSOCK(self._path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            return client.connect_ex(str(self._path)) == errno.ECONNREFUSED

    def close(self) -> None:
        """Close the socket, and remove it unless another has its path now. Idempotent."""
        if self.socket.fileno() >= 0:
            self.socket.close()
            with suppress(OSError, HostError):  # without a broker, it is removed already
                if self._debt:
                    self._broker.pay(self._debt)


class UnixChardev(Chardev):
    """A `Listener`, and its clients one after the other. Raises `UserError`."""

    def __init__(self, loop: Loop, path: Path, option: str) -> None:
        super().__init__(loop)
        self._listener = Listener(path, option)

    def start(self) -> None:
        """Start to accept clients."""
        self._loop.add_reader(self._listener.socket.fileno(), self._knock)

    def _knock(self) -> None:
        """Accept the next client if there is no other, or the other has gone unnoticed."""
        if self.connected and is_gone(self.output_fd):
            self.hang_up()
        if self.leaving:
            return  # until `on_change` was called for the former client
        if self.connected:
            self._rest()
            return
        try:
            client, _ = self._listener.socket.accept()
        except OSError:  # it has gone again, or there are no descriptors left
            self._rest()
            return
        self.input_fd = self.output_fd = client.detach()
        os.set_blocking(self.input_fd, False)
        self.on_change(None)

    def _rest(self) -> None:
        """Let clients wait, and look again later."""
        self._loop.remove_reader(self._listener.socket.fileno())
        self._loop.call_later(LOOK_AGAIN, self._listen_again)

    def _listen_again(self) -> None:
        if (listener := self._socket()) is not None:
            self._loop.add_reader(listener.fileno(), self._knock)

    def _socket(self) -> socket.socket | None:
        """Return the listening socket; None: it is closed."""
        return self._listener.socket if self._listener.socket.fileno() >= 0 else None

    def close(self) -> None:
        """Hang up and remove the socket. Idempotent."""
        super().close()
        if (listener := self._socket()) is not None:
            self._loop.remove_reader(listener.fileno())
        self._listener.close()
