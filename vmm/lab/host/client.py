"""Run a command in a lab host as if it ran here: this process's terminal, pipes and signals."""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from vmm.errors import EXIT_SIGNAL_BASE
from vmm.lab import protocol
from vmm.lab.host import session
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.packages import install
from vmm.lab.protocol import frame
from vmm.terminal.raw_mode import Terminal

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

_FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_INSIST = 3
"""So many signals that the command outlives end the client, and with it the command."""


def run_in_lab(
    profile: str,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    packages: Sequence[str] = (),
) -> int:
    """Run *argv* in a lab host of *profile*; return its exit status, 128 + N for signal N.

    Uses the host that is kept up, or else one of its own, for this command only. The host gets
    Debian's *packages* first.
    """
    with ExitStack() as owned:
        host = Host.find(profile) or owned.enter_context(Host.start(profile))
        if packages:
            install(host, packages)
        return execute(host, argv, env)


def execute(host: Host, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run *argv* in *host*, with this process's stdin, stdout and stderr; return its status.

    If stdin and stdout are terminals the command gets one too, and this one is raw meanwhile.
    """
    terminal = Terminal(0) if os.isatty(0) and os.isatty(1) else None
    with _signals() as (wakeup, arrived):
        size = os.get_terminal_size(1) if terminal else None
        connection = session.open_command(
            host, argv, env=env, tty=(size.lines, size.columns) if size else None
        )
        try:
            if terminal and terminal.is_foreground():
                terminal.make_raw()
            return _Relay(host, connection, wakeup, arrived).run()
        except BrokenPipeError:
            # Our reader went away: the command's would have, too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return EXIT_SIGNAL_BASE + signal.SIGPIPE
        finally:
            if terminal:
                terminal.restore()
            connection.close()


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """Collect signals instead of dying of them. Yields a descriptor to wait on, and the list."""
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


class _Relay:
    """Carries one command's input and output."""

    def __init__(
        self, host: Host, connection: socket.socket, wakeup: int, arrived: list[int]
    ) -> None:
        self._host = host
        self._connection = connection
        self._wakeup = wakeup
        self._arrived = arrived
        self._window = protocol.WINDOW
        self._input_open = True
        self._insisted = 0
        self._last_signal = 0

    def run(self) -> int:
        """Carry until the command ends; return its status."""
        frames = protocol.Frames()
        # poll, not epoll: that refuses regular files.
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        reading = False
        while self._insisted < _INSIST:
            if (self._input_open and self._window > 0) != reading:
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
                else:
                    status = self._receive(frames)
                    if status is not None:
                        return status
        return EXIT_SIGNAL_BASE + self._last_signal

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        # If it can't be sent the command has ended: what there is to receive will tell how.
        with suppress(OSError):
            self._connection.sendall(frame(kind, payload))

    def _pass_signals(self) -> None:
        while self._arrived:
            number = self._arrived.pop(0)
            self._last_signal = number
            if number == signal.SIGHUP:
                self._insisted = _INSIST  # nobody is left to see the output
            if number != signal.SIGWINCH:
                self._insisted += 1
                self._send(protocol.SIGNAL, protocol.NUMBER.pack(number))
            elif os.isatty(1):
                columns, rows = os.get_terminal_size(1)
                self._send(protocol.SIZE, protocol.DIMENSIONS.pack(rows, columns))

    def _read_input(self) -> None:
        try:
            data = os.read(0, min(protocol.CHUNK, self._window))
        except BlockingIOError:
            return
        except OSError:  # closed, or a terminal that has gone
            data = b""
        self._send(protocol.INPUT, data)
        self._window -= len(data)
        self._input_open = bool(data)

    def _receive(self, frames: protocol.Frames) -> int | None:
        try:
            data = self._connection.recv(protocol.CHUNK)
        except OSError:
            data = b""
        if not data:
            raise session.lost(self._host)
        for kind, payload in frames.feed(data):
            if kind == protocol.OUTPUT:
                _write(1, payload)
            elif kind == protocol.ERRORS:
                _write(2, payload)
            elif kind == protocol.TAKEN:
                self._window += protocol.NUMBER.unpack(payload)[0]
            elif kind == protocol.EXIT:
                return int(protocol.NUMBER.unpack(payload)[0])
            elif kind == protocol.FAILED:
                raise session.failed(payload)
        return None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody we share the descriptor with made it so
            select.select([], [fd], [])
        except OSError as error:  # a terminal that has gone is like a pipe without a reader
            raise BrokenPipeError from error
