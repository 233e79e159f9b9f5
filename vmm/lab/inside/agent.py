"""The agent: the lab host's process 1, which runs the client's commands.

Each connection gets a process of its own, so that commands are independent of each other and a
client that ends takes only its own command along. The host is up when the agent answers, so the
agent imports as little as it can before that.
"""

# pathlib takes 50 ms to import here, and exec is the point:
# ruff: noqa: PTH103, PTH104, PTH112, PTH123, S606
from __future__ import annotations

import os
import select
import signal
import socket
from _operator import _compare_digest  # of hmac, without what that imports

from vmm.lab import protocol

READY = "pyvmm-lab: ready"
"""The line on the host's console that says that the agent answers."""
TREES = "/run/pyvmm"
"""The directory of working trees, one directory each."""
_PREPARED = "/run/prepared"
"""The pipe that ends when /init has mounted and loaded all that commands need."""
_RETRY = 50
"""Milliseconds between attempts to connect to a socket where nothing listens yet."""


def _serve(stream: socket.socket, token: bytes) -> None:
    """Serve one client: check its token, then do what it requests until it closes or RUN ends."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not _admit(stream, token):
        return
    connection = protocol.Connection(stream)
    kind, payload = connection.next()
    from vmm.lab.inside import session, zygote  # imported by then: see `main`

    while kind == protocol.TREE:
        name = zygote.parse(payload)["name"]
        _install(connection, name)
        zygote.start(TREES, name)
        kind, payload = connection.next()
    if kind == protocol.RUN and not zygote.hand_over(connection, TREES, payload):
        session.AgentSession(connection).run(zygote.parse(payload))
    if kind == protocol.RELAY:
        _relay(connection, zygote.parse(payload)["path"])


def _admit(stream: socket.socket, token: bytes) -> bool:
    """Return whether the client's first frame is HELLO with *token*. Read no further."""
    expected = protocol.frame(protocol.HELLO, token)
    received = b""
    while len(received) < len(expected):
        data = stream.recv(len(expected) - len(received))
        received += data
        if not data:
            return False
    return _compare_digest(received, expected)  # an early answer would tell how much is right


def _relay(connection: protocol.Connection, path: str) -> None:
    """Connect the client to the Unix socket *path*; wait until something listens there."""
    from vmm.lab import relay

    gone = select.poll()
    gone.register(connection, select.POLLRDHUP)
    with socket.socket(socket.AF_UNIX) as stream:
        while True:
            try:
                stream.connect(path)
                break
            except OSError:
                if gone.poll(_RETRY):
                    return
        relay.pump(connection, stream.fileno(), protocol.OUTPUT)
    connection.finish(relay.GRACE)


def _install(connection: protocol.Connection, name: str) -> None:
    """Unpack the tar archive that the client sends into TREES/name, unless that is there."""
    where = f"{TREES}/{name}"
    if os.path.isdir(where):
        connection.send(protocol.EXIT, protocol.NUMBER.pack(0))
        return
    connection.send(protocol.TAKEN, protocol.NUMBER.pack(0))
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
        try:
            kind, data = connection.next()
        except EOFError:  # the client is gone, and the archive is not whole
            os.close(writable)
            os.execv("/usr/bin/busybox", ["rm", "-rf", temporary])
        if kind == protocol.INPUT:
            ended = not data
            view = memoryview(data)
            while view:
                view = view[os.write(writable, view) :]
    os.close(writable)
    _, status = os.waitpid(tar, 0)
    try:
        os.rename(temporary, where)
    except OSError:  # another client was faster
        status = status if os.path.isdir(where) else 1
    connection.send(protocol.EXIT, protocol.NUMBER.pack(1 if status else 0))


def _parameter(name: str) -> str:
    """Return the value of ``name=value`` on the kernel's command line."""
    with open("/proc/cmdline") as file:
        words = file.read().split()
    return next(word.partition("=")[2] for word in words if word.startswith(name + "="))


def main() -> None:
    """Run as process 1: accept clients for ever."""
    # The kernel reaps our children, and those that lost their parents to process 1.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with open(_PREPARED, "rb") as file:
        file.read()
    listener = socket.create_server(("10.0.2.15", protocol.PORT), backlog=64)
    with open("/host" + _parameter("pyvmm.token"), "rb") as file:
        token = file.read().strip()
    with open("/dev/console", "w") as console:
        console.write(f"{READY}\n")
    # For the processes to come, which share what this one has imported.
    from vmm.lab.inside import session, zygote  # noqa: F401

    while True:
        stream, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _serve(stream, token)
            except EOFError:
                pass  # the client has closed
            finally:
                os._exit(0)
        stream.close()
