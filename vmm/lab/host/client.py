"""Run a command in a lab host with this process's terminal, pipes and signals."""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vmm.errors import EXIT_SIGNAL_BASE, HostError
from vmm.lab import protocol
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.packages import install
from vmm.lab.host.relay import Relay
from vmm.terminal.raw_mode import Terminal
from vmm.terminal.waiting import WaitingLine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from vmm.lab.host.relay import Joint
    from vmm.lab.host.session import ClientSession

_FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_INSIST = 3
"""Signals that the command may outlive; after so many the client ends, and so the command."""


def run_in_lab(  # noqa: PLR0913  (what, where and with what)
    profile: str,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    packages: Sequence[str] = (),
    joints: Sequence[Joint] = (),
    *,
    writable: Sequence[Path] = (),
    start: bool = True,
) -> int:
    """Run *argv* in a lab host of *profile*; return its exit status, 128 + N for signal N.

    Use the host that is kept up, or else a new one for this command only; without *start*, any
    that is up, and no new one. Install Debian's
    *packages* in the host first. Pass on the streams of *joints* meanwhile. Besides the current
    directory the host can write the files and directories *writable* from now on.
    Raises HostError, UserError.
    """
    with ExitStack() as owned:
        host = Host.find(profile)
        if host is None:
            host = owned.enter_context(Host.start(profile)) if start else Host.running(profile)
        host.agent.allow(writable)
        if packages:
            install(host, packages)
        for joint in joints:
            owned.enter_context(Relay(host.agent, joint))
        return execute(host, argv, env)


def execute(host: Host, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run *argv* in *host*, with this process's stdin, stdout and stderr; return its status.

    If stdin and stdout are terminals, the command gets a terminal, too, and ours is raw meanwhile.
    """
    terminal = Terminal(0) if os.isatty(0) and os.isatty(1) else None
    name = " ".join(argv[: 2 if argv[0] == "pyvmm" else 1])
    with WaitingLine() as waiting, _signals() as (wakeup, arrived):

        def write(kind: bytes, data: bytes) -> None:
            waiting.end()
            _write(kind, data)

        waiting.begin(f"waiting for {name} in lab host {host.record.profile}")
        size = os.get_terminal_size(1) if terminal else None
        tty = (size.lines, size.columns) if size else None
        session = host.agent.start(argv, write, env=env, tty=tty)
        try:
            if terminal and terminal.is_foreground():
                terminal.make_raw()
            return _StandardStreams(session, wakeup, arrived).relay()
        except BrokenPipeError:
            # Our reader is gone. To the command it is as if its own were.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return EXIT_SIGNAL_BASE + signal.SIGPIPE
        finally:
            if terminal:
                terminal.restore()
            session.close()


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """Collect signals in a list. Yield a descriptor to wait for them on, and the list."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    former = {
        number: signal.signal(number, note)
        for number in (*_FORWARDED, signal.SIGWINCH)
        if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
    }
    former_fd = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield readable, arrived
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)


class _StandardStreams:
    """Input and signals of this process, passed on to one command until that ends."""

    def __init__(self, session: ClientSession, wakeup: int, arrived: list[int]) -> None:
        self._session = session
        self._wakeup = wakeup
        self._arrived = arrived
        self._insisted = 0
        self._last_signal = 0

    def relay(self) -> int:
        """Pass on until the command ends; return its status."""
        # poll, not epoll: that refuses regular files.
        poll = select.poll()
        poll.register(self._session, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        reading = False
        while self._insisted < _INSIST:
            if (self._session.input_open and self._session.room > 0) != reading:
                reading = not reading
                if reading:
                    poll.register(0, select.POLLIN)
                else:
                    poll.unregister(0)
            for fd, _ in poll.poll():
                if fd == self._wakeup:
                    os.read(self._wakeup, 4096)
                    self._pass_signals()
                elif fd == 0:
                    self._read_input()
                elif (status := self._session.receive()) is not None:
                    return status
        return EXIT_SIGNAL_BASE + self._last_signal

    def _pass_signals(self) -> None:
        while self._arrived:
            number = self._arrived.pop(0)
            self._last_signal = number
            if number == signal.SIGHUP:
                self._insisted = _INSIST  # nobody is left to see the output
            if number != signal.SIGWINCH:
                self._insisted += 1
                self._session.send_signal(number)
            elif os.isatty(1):
                columns, rows = os.get_terminal_size(1)
                self._session.send_size(rows, columns)

    def _read_input(self) -> None:
        try:
            data = os.read(0, min(protocol.CHUNK, self._session.room))
        except BlockingIOError:
            return
        except OSError:  # closed, or a terminal that has gone
            data = b""
        self._session.send_input(data)


def _write(kind: bytes, data: bytes) -> None:
    """Write a command's output to stdout or stderr.

    Raises BrokenPipeError if nobody reads it, HostError if it can't be written, as on a full disk.
    """
    fd = 1 if kind == protocol.OUTPUT else 2
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody we share the descriptor with made it so
            select.select([], [fd], [])
        except OSError as error:
            if error.errno in {errno.EPIPE, errno.EIO}:  # no reader, or a terminal that has gone
                raise BrokenPipeError from error
            name = "standard output" if fd == 1 else "standard error"
            raise HostError(f"{name}: {error.strerror}", "free some, or write elsewhere") from error
