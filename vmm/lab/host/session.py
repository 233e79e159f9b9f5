"""One command in a lab host, seen from outside: its request, its input and output, its end."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.errors import HostError, UserError
from vmm.lab import protocol
from vmm.lab.host import tree as worktree
from vmm.lab.host.state import tail
from vmm.lab.protocol import frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from vmm.lab.host.emulated_host import Host

_OWN = frozenset(
    ("bin", "dev", "etc", "host", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var")
)
"""Top-level directories that are the lab host's own; all others are the outside's, as is /host."""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED = ("COLORTERM", "HOME", "NO_COLOR", "TERM")


def inside(path: str | Path) -> str:
    """Return the name that the outside's *path* has in a lab host."""
    absolute = os.path.abspath(path)  # noqa: PTH100  (resolves no links: they may differ there)
    top = absolute.split("/")[1]
    return f"/host{absolute}" if top in _OWN or not top else absolute


def environment(tree: str | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a command's environment: a few variables of ours, and the *tree*'s vmm."""
    env = {name: value for name, value in os.environ.items() if name in _PASSED}
    env |= {name: value for name, value in os.environ.items() if name.startswith("PYVMM_")}
    if "HOME" in env:
        env["HOME"] = inside(env["HOME"])
    env |= {"LANG": "C.UTF-8", "PATH": _PATH}
    # The host's own: sockets and shared mappings need a file system that is not the outside's.
    env |= {"TMPDIR": "/run/tmp", "XDG_RUNTIME_DIR": "/run/user"}
    if tree:
        where = f"/run/pyvmm/{tree}"
        # Safe path: else `python -c` in a checkout finds that one's vmm, made for this machine.
        env |= {"PATH": f"{where}/bin:{_PATH}", "PYTHONPATH": where, "PYTHONSAFEPATH": "1"}
    return env | dict(extra or {})


def install_tree(host: Host) -> str:
    """Have the working tree's vmm in *host*; return the tree's name."""
    archive = worktree.archive()
    with host.connect() as connection:
        request = json.dumps({"name": archive.stem}).encode()
        connection.sendall(frame(protocol.TREE, request))
        kind, payload = _next(connection, host)
        if kind == protocol.TAKEN:  # it has no such tree
            data = archive.read_bytes()
            for start in range(0, len(data), protocol.CHUNK):
                chunk = data[start : start + protocol.CHUNK]
                connection.sendall(frame(protocol.INPUT, chunk))
            connection.sendall(frame(protocol.INPUT))
            kind, payload = _next(connection, host)
    if kind != protocol.EXIT or protocol.NUMBER.unpack(payload) != (0,):
        raise HostError(f"lab host {host.record.profile} can't unpack the working tree")
    return archive.stem


def _next(connection: socket.socket, host: Host) -> protocol.Frame:
    """Return the next frame, of a connection on which frames come one at a time."""
    frames = protocol.Frames()
    while data := connection.recv(protocol.CHUNK):
        for found in frames.feed(data):
            return found
    raise lost(host)


def lost(host: Host) -> HostError:
    """Return the error for a connection that ended before its command did."""
    return HostError(f"lab host {host.record.profile} went away: {tail(host.directory)}")


def open_command(  # noqa: PLR0913
    host: Host,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    tty: tuple[int, int] | None = None,
    tree: bool = True,
) -> socket.socket:
    """Have *host* start *argv*; return the connection that carries its input and output.

    *tty* is the terminal's rows and columns, if it is to have a terminal.
    """
    name = install_tree(host) if tree else None
    request: dict[str, Any] = {
        "argv": list(argv),
        "env": environment(name, env),
        "cwd": inside(cwd or Path.cwd()),
        "tree": name,
        "tty": tty,
    }
    connection = host.connect()
    connection.sendall(frame(protocol.RUN, json.dumps(request).encode()))
    return connection


def failed(payload: bytes) -> UserError:
    """Return the error for a command that could not be started."""
    return UserError(f"in the lab host: {payload.decode(errors='replace')}")


@dataclass(frozen=True)
class Completed:
    """What became of a command."""

    status: int
    stdout: bytes
    stderr: bytes


class _Exchange:
    """A command's input and output, in memory."""

    def __init__(self, connection: socket.socket, stdin: bytes) -> None:
        self._connection = connection
        self._rest: memoryview | None = memoryview(stdin)
        self._window = protocol.WINDOW
        self._output = {protocol.OUTPUT: bytearray(), protocol.ERRORS: bytearray()}
        self._status = 0

    def feed(self) -> None:
        """Send as much input as the window lets through, and after the last its end."""
        while self._rest and self._window:
            chunk = self._rest[: min(self._window, protocol.CHUNK)]
            self._connection.sendall(frame(protocol.INPUT, bytes(chunk)))
            self._rest = self._rest[len(chunk) :]
            self._window -= len(chunk)
        if self._rest is not None and not self._rest:
            self._connection.sendall(frame(protocol.INPUT))
            self._rest = None

    def take(self, kind: bytes, payload: bytes) -> bool:
        """Take one frame; say whether it was the last."""
        if kind in self._output:
            self._output[kind] += payload
        elif kind == protocol.TAKEN:
            self._window += protocol.NUMBER.unpack(payload)[0]
        elif kind == protocol.FAILED:
            raise failed(payload)
        elif kind == protocol.EXIT:
            (self._status,) = protocol.NUMBER.unpack(payload)
        return kind == protocol.EXIT

    @property
    def completed(self) -> Completed:
        """What became of the command, once it has ended."""
        output, errors = (bytes(self._output[kind]) for kind in (protocol.OUTPUT, protocol.ERRORS))
        return Completed(self._status, output, errors)


def run(  # noqa: PLR0913
    host: Host,
    argv: Sequence[str],
    *,
    stdin: bytes,
    env: Mapping[str, str] | None,
    cwd: str | Path | None,
    timeout: float | None,
    tree: bool,
) -> Completed:
    """Run *argv* in *host*, its input and output in memory."""
    deadline = None if timeout is None else time.monotonic() + timeout
    frames = protocol.Frames()
    with open_command(host, argv, env=env, cwd=cwd, tree=tree) as connection:
        exchange = _Exchange(connection, stdin)
        while True:
            try:
                # If it can't be sent the command has ended: what there is to receive tells how.
                with suppress(OSError):
                    exchange.feed()
                if deadline is not None:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                data = connection.recv(protocol.CHUNK)
            except TimeoutError:
                raise HostError(f"in the lab host: {argv[0]} took over {timeout:g} s") from None
            except OSError:
                data = b""
            if not data:
                raise lost(host)
            for found in frames.feed(data):
                if exchange.take(*found):
                    return exchange.completed
