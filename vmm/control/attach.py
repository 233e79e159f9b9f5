"""Join this process's terminal, or its pipes, to a connection: a console, a prompt."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.terminal.escape import ATTACHED, EscapeCommand, EscapeKeys, key_name
from vmm.terminal.raw_mode import Terminal

if TYPE_CHECKING:
    import socket

CHUNK: Final = 1 << 16
EOT: Final = b"\x04"


def attach(
    peer: socket.socket, early: bytes, prefix: int | None, stdin: int = 0, stdout: int = 1
) -> bool:
    """Pass bytes both ways, after *early*, until one end hangs up; return whether the user left.

    A terminal is raw meanwhile. The user leaves by *prefix* d. The end of *stdin*, if it is no
    terminal, ends only what is typed.
    """
    terminal = Terminal(stdin) if os.isatty(stdin) else None
    keys = EscapeKeys(prefix if terminal else None, ATTACHED)
    former = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if terminal is not None:
            terminal.make_raw()
            if prefix is not None:
                _write(stdout, f"pyvmm: attached; {key_name(prefix)} d leaves\r\n".encode())
        return _relay(peer, early, keys, (stdin, stdout))
    except _LeftError:
        return True
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if terminal is not None:
            terminal.restore()


class _LeftError(Exception):
    """A signal has told this process to end."""


def _leave(_number: int, _frame: object) -> None:
    raise _LeftError


def converse(peer: socket.socket, early: bytes) -> None:
    """Pass lines both ways, as the terminal edits them; the end of standard input is an EOT."""
    _relay(peer, early, EscapeKeys(None), (0, 1), EOT)


def _relay(
    peer: socket.socket, early: bytes, keys: EscapeKeys, ends: tuple[int, int], last: bytes = b""
) -> bool:
    stdin, stdout = ends
    _write(stdout, early)
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    poll.register(stdin, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == peer.fileno():
                data = b""
                with suppress(ConnectionResetError):
                    data = peer.recv(CHUNK)
                if not data:
                    return False
                _write(stdout, data)
            else:
                data = os.read(stdin, CHUNK)
                if not data:
                    poll.unregister(stdin)
                    peer.sendall(last)
                for part in keys.feed(data):
                    if part is EscapeCommand.DETACH:
                        return True
                    if isinstance(part, bytes):
                        with suppress(BrokenPipeError, ConnectionResetError):
                            peer.sendall(part)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
