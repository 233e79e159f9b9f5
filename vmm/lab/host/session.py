"""The client's end of commands in a lab host: requests, input and output, exit status.

The agent's end is `vmm.lab.inside.session.AgentSession`; `vmm.lab.protocol` has the frames.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.lab import protocol
from vmm.lab.host import export, state
from vmm.lab.host import tree as worktree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_OWN = frozenset(
    ("bin", "dev", "etc", "host", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var")
)
"""Top-level directories that are the lab host's own. All others, and /host, are the outside's."""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED = ("COLORTERM", "HOME", "NO_COLOR", "TERM")


def inside(path: str | Path) -> str:
    """Return the name that the outside's *path* has in a lab host."""
    absolute = os.path.abspath(path)  # noqa: PTH100  (resolves no links: they may differ there)
    top = absolute.split("/")[1]
    return f"/host{absolute}" if top in _OWN or not top else absolute


def visible(path: Path) -> Path:
    """Return the name of the file *path* in a lab host.

    That is the user's own name where it works there, so that messages have it. Symbolic links are
    followed here: in the lab host they may lead elsewhere.
    """
    real = os.path.realpath(path)
    direct = real == os.path.abspath(path) and inside(real) == real  # noqa: PTH100
    return path if direct else Path(inside(real))


def mapped(path: str | Path) -> str:
    """Return the name in a lab host by which the outside's *path* can be mapped to be written.

    Links are resolved here: there they lead into the lab host's own directories.
    """
    return f"/run/mapped{os.path.realpath(path)}"


def environment(tree: str | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a command's environment: a few of our variables, and the vmm of *tree*."""
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


@dataclass(frozen=True)
class Completed:
    """The result of a command that has ended."""

    status: int
    """As a shell counts it: 128 + N if signal N ended the command."""
    stdout: bytes
    stderr: bytes


class NotStartedError(UserError):
    """A command that could not be started; *text* says why. The status is a shell's."""

    def __init__(self, text: str) -> None:
        super().__init__(f"in the lab host: {text}")
        self.exit_code = 127 if text.endswith(os.strerror(errno.ENOENT)) else 126


class AgentClient:
    """A way to the agent of the lab host in *directory*: one connection for each request."""

    def __init__(self, directory: Path, record: state.State) -> None:
        self._directory = directory
        self._record = record

    @cached_property
    def token(self) -> bytes:
        """The secret that only the host's owner can read."""
        return (self._directory / "token").read_bytes()

    def connect(self) -> protocol.Connection:
        """Return a connection to the agent on which HELLO was sent. Raises HostError."""
        try:
            stream = socket.create_connection(("127.0.0.1", self._record.port), timeout=30)
            stream.settimeout(None)
            # Else both ends could wait for each other to read.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * protocol.WINDOW)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = protocol.Connection(stream)
            connection.send(protocol.HELLO, self.token)
        except OSError as error:
            raise HostError(
                f"lab host {self._record.profile} does not answer: {error}",
                f"`pyvmm lab down {self._record.profile}` ends it",
            ) from error
        return connection

    def allow(self, writable: Iterable[str | Path]) -> None:
        """Let the host write the files and directories *writable*, while it is up.

        See `vmm.lab.host.export.allow`. Raises HostError.
        """
        if self._record.qemu:
            export.allow(self._record.qemu.pid, writable)

    def lost(self) -> HostError:
        """Return the error for a connection that ended before its command did."""
        said = state.tail(self._directory)
        return HostError(f"lab host {self._record.profile} went away: {said}")

    def install_tree(self) -> str:
        """Install the working tree's vmm unless the host has it; return the tree's name.

        Raises HostError.
        """
        connection = self.connect()
        try:
            return self._install_tree(connection)
        finally:
            connection.close()

    def _install_tree(self, connection: protocol.Connection) -> str:
        archive = worktree.archive()
        try:
            connection.send(protocol.TREE, json.dumps({"name": archive.stem}).encode())
            kind, payload = connection.next()
            if kind == protocol.TAKEN:  # the host has no such tree
                data = archive.read_bytes()
                for start in range(0, len(data), protocol.CHUNK):
                    connection.send(protocol.INPUT, data[start : start + protocol.CHUNK])
                connection.send(protocol.INPUT)
                kind, payload = connection.next()
        except EOFError:
            raise self.lost() from None
        if kind != protocol.EXIT or protocol.NUMBER.unpack(payload) != (0,):
            raise HostError(f"lab host {self._record.profile} can't unpack the working tree")
        return archive.stem

    def start(  # noqa: PLR0913
        self,
        argv: Sequence[str],
        write: Callable[[bytes, bytes], None],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        tty: tuple[int, int] | None = None,
        tree: bool = True,
    ) -> ClientSession:
        """Start *argv* in the host; *write* is called with its output, as `ClientSession` says.

        *tty* is the rows and columns of the command's terminal; None for pipes. Without *tree*
        the working tree's vmm is not installed first. The host can write *cwd* from now on.
        Raises HostError.
        """
        cwd = cwd or Path.cwd()
        self.allow([cwd])
        connection = self.connect()
        try:
            name = self._install_tree(connection) if tree else None
            request: dict[str, Any] = {
                "argv": list(argv),
                "env": environment(name, env),
                "cwd": inside(cwd),
                "tree": name,
                "tty": tty,
            }
            connection.send(protocol.RUN, json.dumps(request).encode())
        except BaseException:
            connection.close()
            raise
        return ClientSession(self, connection, write)


class ClientSession(Closeable):
    """One command in a lab host. `close` ends the command if it still runs.

    *write* gets the command's output as it arrives: OUTPUT or ERRORS, and bytes.
    """

    def __init__(
        self,
        agent: AgentClient,
        connection: protocol.Connection,
        write: Callable[[bytes, bytes], None],
    ) -> None:
        self._agent = agent
        self._connection = connection
        self._write = write
        self.room = protocol.WINDOW
        """Bytes of input that may be sent now."""
        self.input_open = True
        """Whether the end of the input was not sent yet."""

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def abort(self) -> None:
        """End the command now: `receive`, in whatever thread, raises `HostError`. Idempotent."""
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def fileno(self) -> int:
        """Return the connection's descriptor, as `poll` asks for it."""
        return self._connection.fileno()

    def settimeout(self, seconds: float) -> None:
        """Make `receive` raise TimeoutError when nothing arrives for *seconds*."""
        self._connection.socket.settimeout(seconds)

    def send_input(self, data: bytes) -> None:
        """Send *data*, at most `room` bytes; b"" ends the input."""
        self._send(protocol.INPUT, data)
        self.room -= len(data)
        self.input_open = bool(data)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._send(protocol.SIGNAL, protocol.NUMBER.pack(number))

    def send_size(self, rows: int, columns: int) -> None:
        """Set the size of the command's terminal."""
        self._send(protocol.SIZE, protocol.DIMENSIONS.pack(rows, columns))

    def _send(self, kind: bytes, payload: bytes) -> None:
        # If it can't be sent the command has ended: what there is to receive tells how.
        with suppress(OSError):
            self._connection.send(kind, payload)

    def receive(self) -> int | None:
        """Wait for frames and act on them; return the exit status once the command has ended.

        Raises HostError if the host goes away, UserError if the command could not be started.
        """
        try:
            frames = self._connection.receive()
        except EOFError:
            raise self._agent.lost() from None
        for kind, payload in frames:
            if kind in (protocol.OUTPUT, protocol.ERRORS):
                self._write(kind, payload)
            elif kind == protocol.TAKEN:
                self.room += protocol.NUMBER.unpack(payload)[0]
            elif kind == protocol.EXIT:
                return int(protocol.NUMBER.unpack(payload)[0])
            elif kind == protocol.FAILED:
                raise NotStartedError(payload.decode(errors="replace"))
        return None
