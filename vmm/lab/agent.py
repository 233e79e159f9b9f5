"""The agent: the lab host's process 1, which runs the client's commands.

One process per connection, so that commands know nothing of each other and a client's end ends
its command only. It starts fast because it imports little: no subprocess, no asyncio.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

# Under the kernel's init this file is a script: find the package it belongs to.
sys.path.insert(0, "/usr/lib/pyvmm")

from vmm.lab import protocol, spawn
from vmm.lab.protocol import frame

READY = "pyvmm-lab: ready"
"""What the console says once the agent can be reached."""
TREES = "/run/pyvmm"
_GRACE = 2.0
"""Seconds that an abandoned command gets after SIGHUP and SIGTERM."""


def _receive(connection: socket.socket, frames: protocol.Frames) -> list[protocol.Frame]:
    """Return at least one frame, or [] at the end of the stream."""
    while True:
        data = connection.recv(protocol.CHUNK)
        if not data:
            return []
        if found := frames.feed(data):
            return found


def serve(connection: socket.socket, token: bytes) -> None:
    """Serve one client: check its token, do its one request."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    frames = protocol.Frames()
    pending: list[protocol.Frame] = []
    while len(pending) < 2:
        found = _receive(connection, frames)
        if not found:
            return
        pending += found
    (hello, given), (kind, payload), *rest = pending
    if hello != protocol.HELLO or given != token:
        return
    request = json.loads(payload)
    if kind == protocol.RUN:
        Session(connection, frames, rest).run(request)
    elif kind == protocol.TREE:
        _install(connection, frames, rest, request["name"])


def _install(
    connection: socket.socket, frames: protocol.Frames, pending: list[protocol.Frame], name: str
) -> None:
    """Unpack a tar archive into TREES/name, unless it is there."""
    where = f"{TREES}/{name}"
    if os.path.isdir(where):
        connection.sendall(frame(protocol.EXIT, protocol.NUMBER.pack(0)))
        return
    connection.sendall(frame(protocol.TAKEN, protocol.NUMBER.pack(0)))
    temporary = f"{where}.{os.getpid()}"
    os.makedirs(temporary)
    readable, writable = os.pipe()
    tar = os.fork()
    if tar == 0:
        os.dup2(readable, 0)
        os.close(writable)
        os.execv("/usr/bin/busybox", ["tar", "-x", "-C", temporary])
    os.close(readable)
    ended = False
    while not ended:
        for kind, data in pending:
            if kind == protocol.INPUT:
                ended = not data
                view = memoryview(data)
                while view:
                    view = view[os.write(writable, view) :]
        if not ended:
            pending = _receive(connection, frames)
            if not pending:
                return
    os.close(writable)
    _, status = os.waitpid(tar, 0)
    if status == 0:
        try:
            os.rename(temporary, where)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # another client was faster
                raise
    connection.sendall(frame(protocol.EXIT, protocol.NUMBER.pack(0 if status == 0 else 1)))


class Session:
    """One command and its client."""

    def __init__(
        self, connection: socket.socket, frames: protocol.Frames, pending: list[protocol.Frame]
    ) -> None:
        self._connection = connection
        self._frames = frames
        self._pending = pending
        self._input = bytearray()
        self._input_ended = False
        self._gone = False

    def run(self, request: dict[str, Any]) -> None:
        """Run the command until it or its client ends."""
        try:
            command = spawn.start(request)
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
        for pending in self._pending:
            self._take(*pending)
        while status is None and not self._gone:
            self._relay(ended)
            status = command.poll()
        if status is None:
            self._abandon()
            return
        self._drain()
        self._send(protocol.EXIT, protocol.NUMBER.pack(status))

    def _relay(self, ended: int) -> None:
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
                data = self._connection.recv(protocol.CHUNK)
            except OSError:
                data = b""
            if not data:
                self._gone = True
            for kind, payload in self._frames.feed(data):
                self._take(kind, payload)

    @property
    def _wants_write(self) -> bool:
        return bool(self._input) or self._input_ended

    def _forward(self, fd: int) -> bool:
        """Send on what *fd* has; say whether it may have more."""
        try:
            data = os.read(fd, protocol.CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose last user is gone says EIO
            data = b""
        if not data:
            self._command.close_output(fd)
            return False
        self._send(self._command.outputs[fd], data)
        return not self._gone

    def _drain(self) -> None:
        """Forward what an ended command has left in its pipes; not what its children may add."""
        for fd in list(self._command.outputs):
            os.set_blocking(fd, False)
            while self._forward(fd):
                pass

    def _feed(self) -> None:
        """Write what the command's input takes."""
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
            self._connection.sendall(frame(kind, payload))
        except OSError:
            self._gone = True

    def _abandon(self) -> None:
        """End a command whose client is gone."""
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


def _reap(*_: object) -> None:
    """Bury children, our own and those that lost their parents to process 1."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _parameter(name: str) -> str:
    with open("/proc/cmdline") as file:  # noqa: PTH123  (pathlib costs 50 ms here)
        words = file.read().split()
    return next(word.partition("=")[2] for word in words if word.startswith(name + "="))


def main() -> None:
    """Be process 1."""
    with open("/host" + _parameter("pyvmm.token"), "rb") as file:  # noqa: PTH123
        token = file.read().strip()
    os.makedirs(TREES, exist_ok=True)
    listener = socket.create_server(("0.0.0.0", protocol.PORT), backlog=64)
    with open("/dev/console", "w") as console:  # noqa: PTH123
        console.write(f"{READY}\n")
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(connection, token)
            finally:
                os._exit(0)
        connection.close()


if __name__ == "__main__":
    main()
