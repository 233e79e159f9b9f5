"""The agent: the lab host's process 1, which runs the client's commands.

One process per connection, so that commands know nothing of each other and a client's end ends
its command only. It imports little before it is ready: a host is up when its agent is.
"""

# pathlib takes 50 ms to import here, and exec is the point:
# ruff: noqa: PTH103, PTH104, PTH112, PTH123, S606
from __future__ import annotations

import os
import signal
import socket

from vmm.lab import protocol
from vmm.lab.protocol import frame

READY = "pyvmm-lab: ready"
"""What the console says once the agent can be reached."""
TREES = "/run/pyvmm"
"""Where working trees go, one directory each."""
_PREPARED = "/run/prepared"
"""The pipe that ends when /init has prepared all else."""


def _receive(connection: socket.socket, frames: protocol.Frames) -> list[protocol.Frame]:
    """Return at least one frame, or [] at the end of the stream."""
    while data := connection.recv(protocol.CHUNK):
        if found := frames.feed(data):
            return found
    return []


def _serve(connection: socket.socket, token: bytes) -> None:
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
    from vmm.lab.inside import relay, zygote

    request = zygote.parse(payload)
    if kind == protocol.TREE:
        _install(connection, frames, rest, request["name"])
        zygote.start(TREES, request["name"])
    elif kind == protocol.RUN and not zygote.hand_over(connection, TREES, payload, rest, frames):
        relay.Session(connection, frames, rest).run(request)


def _install(
    connection: socket.socket, frames: protocol.Frames, pending: list[protocol.Frame], name: str
) -> None:
    """Unpack the tar archive that the client sends into TREES/name, unless that is there."""
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
            if not pending:  # the client is gone, and the archive not whole
                os.close(writable)
                os.execv("/usr/bin/busybox", ["rm", "-rf", temporary])
    os.close(writable)
    _, status = os.waitpid(tar, 0)
    try:
        os.rename(temporary, where)
    except OSError:  # another client was faster
        status = status if os.path.isdir(where) else 1
    connection.sendall(frame(protocol.EXIT, protocol.NUMBER.pack(1 if status else 0)))


def _parameter(name: str) -> str:
    with open("/proc/cmdline") as file:
        words = file.read().split()
    return next(word.partition("=")[2] for word in words if word.startswith(name + "="))


def main() -> None:
    """Be process 1."""
    with open(_PREPARED, "rb") as file:
        file.read()
    listener = socket.create_server(("10.0.2.15", protocol.PORT), backlog=64)
    with open("/host" + _parameter("pyvmm.token"), "rb") as file:
        token = file.read().strip()
    with open("/dev/console", "w") as console:
        console.write(f"{READY}\n")
    from vmm.lab.inside import zygote  # once, for all processes to come

    signal.signal(signal.SIGCHLD, zygote.reap)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _serve(connection, token)
            finally:
                os._exit(0)
        connection.close()
