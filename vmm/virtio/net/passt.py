"""passt: translate the guest's packets to sockets of this user, so that no privilege is needed.

    guest --rings--> passt --sockets--> host and beyond          vhost-user, where passt knows it
    guest --rings--> threads of ours --stream--> passt --> ...   otherwise

passt gets one end of a pair of sockets, and ends when the other end is closed.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

from vmm import broker
from vmm._native import lib
from vmm.errors import HostError
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.vhost.daemon import Daemon, find
from vmm.virtio.vhost.service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm.config.net import Forward, NetConfig
    from vmm.events import Events
    from vmm.memory import GuestMemory

FIRST_USER: Final[int] = lib.PYVMM_FIRST_USER + 0x0100_0000
MOST_USERS: Final = 16
"""Users of a machine's interfaces: beyond that they share one."""

ARRIVAL: Final = 30.0
"""Seconds in which a passt outside the lab host must have come: there it is waiting already."""

SETTLING: Final = 0.5
"""Seconds in which passt finds out whether it can bind the ports that it is to forward."""


DNS_ADDRESS: Final = "169.254.1.1"
"""The name server that a guest is told where the host's own is on the host's loopback: a
link-local address, which the guest's default route leads to passt."""


class Passt(Service):
    """Start passt for one connection at a time. Raises `HostError`.

    vhost_user  the connection carries vhost-user, which old versions do not know; else frames
    program     the command that starts passt; None: find it
    """

    def __init__(
        self,
        config: NetConfig,
        events: Events,
        *,
        vhost_user: bool = False,
        program: Sequence[str] | None = None,
    ) -> None:
        what = config.option
        program = program or [find("passt", (), package="passt", what_for=what)]
        options = ["--vhost-user"] if vhost_user else []
        options += ["--mtu", str(config.mtu)] if config.mtu is not None else []
        options += ["--runas", _user()] if os.geteuid() == 0 else []
        if not config.reaches_host:
            options += ["--no-map-gw", *_resolver(program)]
        for forward in config.forwards:
            _check_free(forward, what)
            flag = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
            options += [flag, f"{forward.host}:{forward.guest}"]

        def argv(fd: int) -> list[str]:
            return [*program, "--foreground", "--quiet", "--fd", str(fd), *options]

        super().__init__(argv, events, what=what)

    def connect(self) -> socket.socket:
        """End the former process, start another, and return the connection to it."""
        self.close()
        self.count()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._daemon = Daemon(self._command, self._events, fds=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    def settle(self) -> None:
        """Raise `HostError` if passt ends soon, because it cannot do what it is asked."""
        if self._daemon is not None and self._daemon.wait(SETTLING):
            raise HostError(f"{self.what}: {self._daemon.last_words()}")


_users = count()


def _user() -> str:
    """Return user and group of another passt that root starts.

    They are above those of machines and other daemons, which have process IDs below 2**22.
    """
    user = FIRST_USER + os.getpid() * MOST_USERS + next(_users) % MOST_USERS
    return f"{user}:{user}"


def _check_free(forward: Forward, what: str) -> None:
    """Raise `HostError` if the host's port cannot be had.

    passt itself goes on if it gets the port for IPv6 only.
    """
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if forward.protocol == "tcp":  # connections that linger are no reason
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", forward.host))
        except OSError as error:
            raise HostError(
                f"{what}: {forward.protocol} port {forward.host}: {error.strerror}",
                "forward another port of the host",
            ) from error


def _resolver(program: Sequence[str], file: str = "/etc/resolv.conf") -> list[str]:
    """Return options with which a passt without the host's loopback resolves names.

    A name server on the loopback (systemd-resolved's, for instance) is not told to guests then;
    passt is to pass on what guests ask another address.
    """
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            words = [line.split() for line in lines]
    except OSError:
        return []
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    if not servers or not all(server.startswith("127.") or server == "::1" for server in servers):
        return []
    told = subprocess.run([*program, "--help"], capture_output=True, check=False).stdout
    if b"--dns-host" not in told:  # a passt of 2023
        return []
    return ["--dns", DNS_ADDRESS, "--dns-forward", DNS_ADDRESS, "--dns-host", servers[0]]


class RelayedPasst:
    """A passt outside the lab host, at the other end of each connection to the socket *path*.

    Each connection has a passt of its own, which is ready before the driver is. Owns the socket.
    """

    def __init__(self, what: str, path: Path) -> None:
        self.what = what
        self._broker = broker.current()
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(path))
            inode = path.stat().st_ino
            self._debt = self._broker.owe("socket", str(path.absolute()), inode)
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise HostError(f"{what}: {path}: {error.strerror}") from error
        self._listener.settimeout(ARRIVAL)

    def connect(self) -> socket.socket:
        """Return the next connection. Raises `HostError` if none comes."""
        try:
            return self._listener.accept()[0]
        except OSError as error:
            raise HostError(f"{self.what}: no passt comes from outside the lab host") from error

    def explain(self, problem: str) -> str:
        """Return *problem* with the daemon's name."""
        return f"passt, outside the lab host, {problem}"

    def close(self) -> None:
        """Remove the socket. Idempotent."""
        self._listener.close()
        with suppress(OSError, HostError):  # without a broker, it is removed already
            self._broker.pay(self._debt)


class StreamBackend(ThreadBackend):
    """Threads of ours, with *passt* at the other end of a stream. Owns *passt*.

    Each driver gets a process of its own.
    """

    def __init__(self, passt: Passt | RelayedPasst) -> None:
        super().__init__([-1], offers=0, stream=True)
        self._passt = passt
        self._socket: socket.socket | None = None
        if isinstance(passt, Passt):
            try:
                self._connect()
                passt.settle()
            except BaseException:
                self.close()
                raise

    def _connect(self) -> None:
        self._hang_up()
        self._socket = self._passt.connect()
        self._socket.settimeout(0.0)
        self._files = [self._socket.fileno()]
        self._forget_frames()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def start(self, features: int, memory: GuestMemory) -> None:
        """Start with a driver, and with a new passt, which knows of no other driver."""
        super().start(features, memory)
        self._connect()

    def ring_error(self, index: int) -> str:
        """Return why the ring's thread has ended."""
        if self._threads[index].result > 0:
            return f"{self._passt.what}: {self._passt.explain('hung up')}"
        return super().ring_error(index)

    def stop(self) -> None:
        """End passt."""
        super().stop()
        self._hang_up()
        if isinstance(self._passt, Passt):
            self._passt.close()

    def close(self) -> None:
        """End threads and passt. Idempotent."""
        super().close()
        self._hang_up()
        self._passt.close()
