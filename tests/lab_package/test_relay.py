"""Streams between this machine and sockets in a lab host, with the agent in a thread of ours."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread

import pytest

from vmm.cli.ends import PtyEnd, SocketEnd
from vmm.lab import protocol
from vmm.lab.host.relay import Joint, Relay
from vmm.lab.host.session import AgentClient
from vmm.lab.inside import agent
from vmm.virtio.console.chardev.unix import Listener

TOKEN = b"7" * 64


class Agent(AgentClient):
    """An agent whose connections are threads."""

    def __init__(self) -> None:
        self.served: list[Thread] = []

    def connect(self) -> protocol.Connection:
        """Return a connection whose other end `vmm.lab.inside.agent` serves."""
        listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()

        def serve() -> None:
            with theirs, suppress(EOFError):
                agent._serve(theirs, TOKEN)

        self.served.append(Thread(target=serve, daemon=True))
        self.served[-1].start()
        connection = protocol.Connection(ours)
        connection.send(protocol.HELLO, TOKEN)
        return connection


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen on the socket "in the lab host" that streams go to."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inside"))
        listener.listen(8)
        listener.settimeout(20)
        yield listener


@pytest.fixture
def user(tmp_path: Path, inside: socket.socket) -> Iterator[Callable[[], socket.socket]]:
    """``user()`` is a client of the socket on the user's machine."""

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(str(tmp_path / "outside"))
        return client

    end, peer = SocketEnd(Listener(tmp_path / "outside", "--console unix")), Agent()
    with closing(end), Relay(peer, Joint(end, str(tmp_path / "inside"))):
        yield connect
    for thread in peer.served:
        thread.join(20)
        assert not thread.is_alive()
    assert not (tmp_path / "outside").exists()


def accepted(inside: socket.socket) -> socket.socket:
    stream, _ = inside.accept()
    stream.settimeout(20)
    return stream


def all_of(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def test_each_end_of_a_stream_can_end_first(
    inside: socket.socket, user: Callable[[], socket.socket]
) -> None:
    with user() as client, accepted(inside) as stream:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert all_of(stream) == b"question"
        stream.sendall(b"answer")
        stream.shutdown(socket.SHUT_WR)
        assert all_of(client) == b"answer"
    with user() as client, accepted(inside) as stream:
        stream.sendall(b"last words")
        stream.close()
        assert all_of(client) == b"last words"
    with user() as client, accepted(inside) as stream:
        client.sendall(b"good bye")
        client.close()
        assert all_of(stream) == b"good bye"


def test_a_stream_that_nobody_reads_holds_up_its_sender_and_loses_nothing(
    inside: socket.socket, user: Callable[[], socket.socket]
) -> None:
    data = os.urandom(1 << 20) * 32
    with user() as client, accepted(inside) as stream:
        for sender, receiver in ((client, stream), (stream, client)):
            sender.settimeout(0.0)
            deadline = time.monotonic() + 1
            view = memoryview(data)
            while view and time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    view = view[sender.send(view[: 1 << 16]) :]
            assert view, "32 MiB are more than all buffers on the way have"
            sender.settimeout(20)
            thread = Thread(target=sender.sendall, args=(view,))
            thread.start()
            received = bytearray()
            while len(received) < len(data):
                received += receiver.recv(1 << 16)
            assert received == data
            thread.join()


def test_clients_come_one_after_the_other(
    inside: socket.socket, user: Callable[[], socket.socket]
) -> None:
    with user() as first, accepted(inside) as one, user() as second:
        second.sendall(b"second")
        inside.settimeout(0.3)
        with pytest.raises(TimeoutError):
            inside.accept()
        inside.settimeout(20)
        first.close()
        assert all_of(one) == b""
        one.close()
        with accepted(inside) as two:
            assert two.recv(100) == b"second"


def test_a_client_waits_for_the_machine(tmp_path: Path) -> None:
    end, peer = SocketEnd(Listener(tmp_path / "outside", "--console unix")), Agent()
    with closing(end), Relay(peer, Joint(end, str(tmp_path / "late"))):
        with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as late:
            client.connect(str(tmp_path / "outside"))
            client.sendall(b"early")
            time.sleep(0.2)
            late.bind(str(tmp_path / "late"))
            late.listen()
            with accepted(late) as stream:
                assert stream.recv(100) == b"early"
        with socket.socket(socket.AF_UNIX) as client:  # one that the end of the run finds waiting
            (tmp_path / "late").unlink()
            client.connect(str(tmp_path / "outside"))
            client.close()
    for thread in peer.served:
        thread.join(20)
        assert not thread.is_alive()


def test_a_terminal_can_be_opened_again(tmp_path: Path, inside: socket.socket) -> None:
    end = PtyEnd("--console pty")
    with closing(end), Relay(Agent(), Joint(end, str(tmp_path / "inside"))):
        for _ in range(2):
            user = os.open(end.path, os.O_RDWR | os.O_NOCTTY)
            with accepted(inside) as stream:
                os.write(user, b"typed\n")
                assert stream.recv(100) == b"typed\n"
                stream.sendall(b"shown\n")
                assert os.read(user, 100) == b"shown\n"
                os.close(user)
                assert all_of(stream) == b""


@pytest.mark.parametrize("right", [0, 1, 20, len(TOKEN) - 1])
def test_a_wrong_token_is_refused_when_it_is_whole(right: int) -> None:
    """How much of it is right cannot be told from when the answer comes."""
    wrong = protocol.frame(protocol.HELLO, TOKEN[:right] + b"?" * (len(TOKEN) - right))
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor() as pool:
        ours.sendall(wrong[:-1])
        answer = pool.submit(agent._admit, theirs, TOKEN)
        with pytest.raises(TimeoutError):
            answer.result(0.05)
        ours.sendall(wrong[-1:])
        assert answer.result(10) is False


@pytest.mark.parametrize(
    "first",
    [
        protocol.frame(protocol.HELLO, b"0" * 64),
        protocol.frame(protocol.RUN, b"{}"),
        b"H\xff\xff\xff\xff" + bytes(100),
    ],
)
def test_nothing_is_read_of_a_client_without_the_token(first: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(first + bytes(1000))
        assert not agent._admit(theirs, TOKEN)
        assert len(theirs.recv(2000)) >= 1000 - len(TOKEN)
