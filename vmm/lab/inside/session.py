"""The agent's end of one command: input, output, window size, signals, exit status.

The client's end is `vmm.lab.host.session.ClientSession`.
"""

from __future__ import annotations

import os
import select
import signal
import time

from vmm.lab import protocol
from vmm.lab.inside import spawn

TYPE_CHECKING = False  # importing typing takes 50 ms in a lab host
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_GRACE = 2.0
"""Seconds that a command without a client gets after SIGHUP, and again after SIGTERM."""


class AgentSession:
    """One command and the connection to its client.

    *become* turns a forked process into the command: see `spawn.start`.
    """

    def __init__(
        self,
        connection: protocol.Connection,
        become: Callable[[dict[str, Any]], None] = spawn.execute,
    ) -> None:
        self._connection = connection
        self._input = bytearray()
        self._input_ended = False
        self._gone = False
        self._become = become

    def run(self, request: dict[str, Any]) -> None:
        """Run the command until it or its client ends."""
        try:
            command = spawn.start(request, self._become)
        except OSError as error:
            text = f"{request['argv'][0]}: {error.strerror}"
            self._send(protocol.FAILED, text.encode())
            return
        self._command = command
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        status = command.poll()
        while self._connection.pending:
            self._take(*self._connection.next())
        while status is None and not self._gone:
            self._relay(ended)
            status = command.poll()
        if status is None:
            self._abandon()
            return
        self._drain()
        self._send(protocol.EXIT, protocol.NUMBER.pack(status))
        self._connection.finish(_GRACE)

    def _relay(self, ended: int) -> None:
        """Wait for one of the command, its streams and its client, and pass on what there is."""
        readable = [self._connection.fileno(), ended, *self._command.outputs]
        writable = [self._command.input] if self._command.input >= 0 and self._wants_write else []
        readable, writable, _ = select.select(readable, writable, [])
        if ended in readable:
            os.read(ended, 512)
        for fd in readable:
            if fd in self._command.outputs:
                self._forward(fd)
        if writable:
            self._feed()
        if self._connection.fileno() in readable:
            try:
                frames = self._connection.receive()
            except EOFError:
                self._gone = True
                return
            for kind, payload in frames:
                self._take(kind, payload)

    @property
    def _wants_write(self) -> bool:
        return bool(self._input) or self._input_ended

    def _forward(self, fd: int) -> bool:
        """Send on what *fd* has; return whether it may have more."""
        try:
            data = os.read(fd, protocol.CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last user of a terminal is gone
            data = b""
        if not data:
            self._command.close_output(fd)
            return False
        self._send(self._command.outputs[fd], data)
        return not self._gone

    def _drain(self) -> None:
        """Forward what an ended command left in its pipes, without waiting for its children."""
        for fd in list(self._command.outputs):
            os.set_blocking(fd, False)
            while self._forward(fd):
                pass

    def _feed(self) -> None:
        """Write to the command's input as much as it takes."""
        fd = self._command.input
        if self._input:
            try:
                taken = os.write(fd, memoryview(self._input)[: protocol.CHUNK])
            except BlockingIOError:
                return
            except OSError:  # the command reads no more: swallow the rest
                taken = len(self._input)
            del self._input[:taken]
            self._send(protocol.TAKEN, protocol.NUMBER.pack(taken))
        if not self._input and self._input_ended:
            self._command.end_input()
            self._input_ended = False

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == protocol.INPUT:
            if self._command.input < 0:
                self._send(protocol.TAKEN, protocol.NUMBER.pack(len(payload)))
            elif payload:
                self._input += payload
            else:
                self._input_ended = True
        elif kind == protocol.SIZE:
            self._command.resize(*protocol.DIMENSIONS.unpack(payload))
        elif kind == protocol.SIGNAL:
            self._command.signal(*protocol.NUMBER.unpack(payload))

    def _send(self, kind: bytes, payload: bytes) -> None:
        try:
            self._connection.send(kind, payload)
        except OSError:
            self._gone = True

    def _abandon(self) -> None:
        """End a command whose client is gone: SIGHUP, SIGTERM, SIGKILL."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
            self._command.signal(number)
            deadline = time.monotonic() + _GRACE
            while time.monotonic() < deadline:
                if self._command.poll() is not None and not self._command.session():
                    return
                time.sleep(0.02)
            if number == signal.SIGTERM:
                for pid in self._command.session():
                    os.kill(pid, signal.SIGKILL)
