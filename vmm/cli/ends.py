"""Host ends of a machine that runs in a lab host: they are on the user's machine all the same.

    --console unix=PATH, pty   made here; what connects reaches the console's socket in the host
    --gdb                      made here, too; its client reaches a socket in the host
    --net user                 passt runs here; the machine in the host gets the passt's stream
    --pmem                     opened and locked here; mapped in the host, which has it by 9p
    --disk, --flash            locked here; opened in the host, which has them by 9p

`vmm.lab.host.relay` passes the bytes of streams on. A TAP interface and vsock are the lab host's
kernel's.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import select
import shutil
import signal
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cli import place
from vmm.config.net import NetKind
from vmm.debug.listener import listen
from vmm.errors import UserError
from vmm.events import Events
from vmm.image_lock import lock_image
from vmm.lab.debian.prefix import prefix
from vmm.lab.host.relay import Joint
from vmm.lab.host.session import mapped
from vmm.virtio.console.chardev.chardev import is_gone
from vmm.virtio.console.chardev.pty import LOOK_AGAIN, open_pty
from vmm.virtio.console.chardev.unix import Listener
from vmm.virtio.net.passt import Passt
from vmm.virtio.pmem_file import PmemFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack
    from types import FrameType

    from vmm.config import MachineConfig
    from vmm.config.console import ConsoleConfig
    from vmm.config.gdb import GdbConfig
    from vmm.config.net import NetConfig
    from vmm.config.pmem import PmemConfig
    from vmm.debug.listener import PortListener

_INSIDE = "/run/tmp"
"""Where sockets can be made in a lab host."""


class SocketEnd:
    """Clients of a listening socket, one after the other."""

    def __init__(self, listener: Listener | PortListener) -> None:
        self._listener = listener

    def next(self, stop: int) -> int | None:
        """Wait for a client; return its descriptor. None: *stop* can be read."""
        poll = select.poll()
        poll.register(self._listener.socket, select.POLLIN)
        poll.register(stop, select.POLLIN)
        while True:
            if any(fd == stop for fd, _ in poll.poll()):
                return None
            try:
                return self._listener.socket.accept()[0].detach()
            except (BlockingIOError, ConnectionError):  # it has gone again
                continue

    def left(self) -> None:
        """Do nothing: the next client may wait already."""

    def close(self) -> None:
        """Remove the socket. Idempotent."""
        self._listener.close()


class PtyEnd:
    """Whoever has a new pseudo-terminal open, whose name is *path*. Raises `HostError`."""

    def __init__(self, option: str) -> None:
        self._master, self.path = open_pty(option)

    def next(self, stop: int) -> int | None:
        """Wait until somebody has it open; return a descriptor. None: *stop* can be read."""
        while is_gone(self._master):
            if select.select([stop], [], [], LOOK_AGAIN)[0]:
                return None
        return os.dup(self._master)

    def left(self) -> None:
        """Do nothing: it stays, for whoever opens it next."""

    def close(self) -> None:
        """Close the master, which ends the other side."""
        os.close(self._master)


class PasstEnd:
    """A passt for each driver of the guest. Raises `HostError`: it cannot bind a port, say."""

    def __init__(self, config: NetConfig) -> None:
        program = None
        if not shutil.which("passt"):
            program = prefix("passt", ["passt"]).command("usr/bin/passt")
        self._passt = Passt(config, Events(None), program=program)
        self._ready = self._start()

    def _start(self) -> int:
        stream = self._passt.connect()
        try:
            self._passt.settle()
        except BaseException:
            stream.close()
            self._passt.close()
            raise
        return stream.detach()

    def next(self, stop: int) -> int | None:
        """Return the stream of a passt that has not served yet. None: *stop* can be read."""
        if select.select([stop], [], [], 0)[0]:
            return None
        fd, self._ready = self._ready, -1
        return fd if fd >= 0 else self._start()

    def left(self) -> None:
        """End the passt: the next driver gets another."""
        self._passt.close()

    def close(self) -> None:
        """End the passt. Idempotent."""
        self._passt.close()
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1


class Ends:
    """Make the host ends of *config* here; *owned* closes them. Raises `UserError`, `HostError`.

    config  the machine for the lab host, whose ends are sockets there
    joints  which end here belongs to which socket there
    named   the files and directories of this machine of which `visible` was asked
    """

    def __init__(self, config: MachineConfig, owned: ExitStack) -> None:
        self._owned = owned
        self._prefix = f"{_INSIDE}/pyvmm-{secrets.token_hex(6)}-"
        self.joints: list[Joint] = []
        self.named: list[Path] = [each.path for each in config.pmems]
        owned.enter_context(_ended_by_signals())
        ports = iter(range(len(config.consoles)))
        lock(config, owned)
        pmems = lend(config.pmems, owned)
        self._mapped = {each.mapped for each in pmems}
        self.config = dataclasses.replace(
            config,
            pmems=pmems,
            nets=tuple(self._net(net) for net in config.nets),
            gdb=self._gdb(config.gdb),
            consoles=tuple(
                self._console(each, each.name or str(next(ports))) for each in config.consoles
            ),
        )

    def visible(self, path: Path) -> Path:
        """Return the name of *path* in the lab host: of a file, or of a socket of `joints`."""
        if path in self._mapped or str(path).startswith(self._prefix):
            return path
        self.named.append(path)
        return place.visible(path)

    def _join(self, end: SocketEnd | PtyEnd | PasstEnd) -> Path:
        self._owned.callback(end.close)
        self.joints.append(Joint(end, f"{self._prefix}{len(self.joints)}"))
        return Path(self.joints[-1].path)

    def _net(self, config: NetConfig) -> NetConfig:
        if config.kind is not NetKind.USER:
            return config
        return dataclasses.replace(config, relay=self._join(PasstEnd(config)))

    def _gdb(self, config: GdbConfig | None) -> GdbConfig | None:
        """Return *config* with a socket in the lab host, which a client of ours here reaches."""
        if config is None:
            return None
        return config._replace(port=None, path=self._join(SocketEnd(listen(config))))

    def _console(self, config: ConsoleConfig, port: str) -> ConsoleConfig:
        option = f"--console {config.kind}"
        if config.kind == "unix" and config.path is not None:
            return config._replace(path=self._join(SocketEnd(Listener(config.path, option))))
        if config.kind == "pty":
            end = PtyEnd(option)
            path = self._join(end)
            say(f"console port {port} is {end.path}")
            return config._replace(kind="unix", path=path)
        return config


def lend(configs: Sequence[PmemConfig], owned: ExitStack) -> tuple[PmemConfig, ...]:
    """Open, and perhaps make, the files of *configs* here; return them as the lab host has them.

    They are locked until *owned* is closed: flock(2) in the lab host does not reach this machine.
    Raises `UserError`, `HostError`, as `PmemFile` does.
    """
    for each in configs:
        with suppress(OSError):
            if stat.S_ISBLK(each.path.stat().st_mode):
                raise UserError(
                    f"{each.option}: a lab host does not reach this machine's block devices",
                    "name a file",
                )
        owned.enter_context(PmemFile(each))
    return tuple(each._replace(mapped=Path(mapped(each.path))) for each in configs)


def lock(config: MachineConfig, owned: ExitStack) -> None:
    """Lock the files of disks and flash here, as native machines do, until *owned* is closed.

    flock(2) in a lab host does not reach this machine: without, two hosts, or a host and a native
    machine, would write one file. Raises `UserError` if another machine has a file.
    """
    files = [(disk.path, f"--disk {disk.path}", disk.read_only) for disk in config.disks]
    if config.flash is not None:
        files.append((config.flash.path, f"--flash {config.flash.path}", config.flash.read_only))
    for path, option, read_only in files:
        with suppress(OSError):  # the lab host tells what is wrong with it, or makes it
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            owned.callback(os.close, fd)
            lock_image(fd, option, read_only=read_only)


def say(line: str) -> None:
    """Tell the user *line* before the guest runs."""
    print(f"pyvmm: {line}", file=sys.stderr, flush=True)  # noqa: T201


def staying(config: MachineConfig, profile: str) -> str | None:
    """Return a line about the host ends of *config* that are in the lab host; None: there are none.

    The kernel that has them is that host's, of *profile*.
    """
    options: Sequence[str] = [net.option for net in config.nets if net.kind is NetKind.TAP]
    if config.vsock is not None:
        options = [*options, f"--vsock {config.vsock}"]
    if not options:
        return None
    return (
        f"{' and '.join(options)}: the host's side is in the lab host ({profile}), not on this "
        f"machine; with a host that `pyvmm lab up {profile}` keeps, `pyvmm lab exec {profile} -- "
        "COMMAND` reaches it"
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make deadly signals exceptions, so that sockets are removed while a lab host starts."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
