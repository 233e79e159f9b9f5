"""Connections in TLS: who is trusted, what is carried, and that no carrier stays."""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.state import certificates
from vmm.errors import HostError, UserError
from vmm.state import tls

NAME = "there.example"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def directory(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.write(tmp_path_factory.mktemp("tls") / "pki", authority, NAME)


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def context(directory: Path, name: str | None) -> ssl.SSLContext:
    """Return the TLS of one side; a client without a key has no certificate."""
    if name is None or (directory / "client-key.pem").exists():
        return tls.context("--x", directory, server=name is None)
    return ssl.create_default_context(cafile=directory / "ca-cert.pem")


def connect(
    owned: ExitStack, server: Path, client: Path, name: str = NAME, *, later: bool = False
) -> tuple[socket.socket | Exception, socket.socket | Exception]:
    """Connect two sides with the files in *server* and *client*; return each's end, or error.

    Each is a process of its own: a carrier is forked where there is one thread.
    """
    here, there = socket.socketpair()
    ends = [socket.socketpair() for _ in range(2)]
    for side, connection, (_, theirs) in ((None, here, ends[0]), (name, there, ends[1])):
        if os.fork():
            continue
        try:
            made = context(client if side else server, side)
            found = tls.wrap("--x", connection, made, side, later=later and side is not None)
            socket.send_fds(theirs, [b"+"], [found.fileno()])
        except (HostError, UserError) as error:
            theirs.send(b"-" + str(error).encode())
        finally:
            os._exit(0)
    here.close()
    there.close()
    results: list[socket.socket | Exception] = []
    for ours, theirs in ends:
        theirs.close()
        with ours:
            text, fds, _flags, _address = socket.recv_fds(ours, 500, 1)
        os.wait()
        if text[:1] == b"+":
            results.append(owned.enter_context(socket.socket(fileno=fds[0])))
        else:
            results.append(HostError(text[1:].decode()))
    return results[0], results[1]


def pieces(name: str) -> Iterator[bytes]:
    """Yield the same bytes for the same *name*."""
    rng = random.Random(name)  # noqa: S311
    for _ in range(200):
        yield rng.randbytes(rng.choice([1, 16384, 16385, 100_000]))


def wait_for_carriers(count: int) -> None:
    """Wait until there are *count* processes of this program."""
    deadline = time.monotonic() + 30
    while carriers() != count:
        assert time.monotonic() < deadline, "a carrier is left"
        time.sleep(0.05)


def carriers() -> int:
    """Return how many processes have this one's command line."""
    own = Path("/proc/self/cmdline").read_bytes()
    found = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if (status.parent / "cmdline").read_bytes() == own:
                found += 1
        except OSError:
            continue
    return found


def test_bytes_go_both_ways_as_they_are(owned: ExitStack, directory: Path) -> None:
    """At once and much, in pieces of any size: what one side sends is what the other has."""
    before = carriers()
    server, client = connect(owned, directory, directory)
    assert isinstance(server, socket.socket)
    assert isinstance(client, socket.socket)
    digests: dict[str, str] = {}

    def send(name: str, end: socket.socket) -> None:
        for data in pieces(name):
            end.sendall(data)

    def receive(name: str, end: socket.socket) -> None:
        wanted = b"".join(pieces(name))
        came = bytearray()
        while len(came) < len(wanted):
            data = end.recv(min(len(wanted) - len(came), 70_000))
            assert data, "the connection ended"
            came += data
        digests[name] = "whole" if came == wanted else "another"

    threads = [
        threading.Thread(target=send, args=("there", client)),
        threading.Thread(target=send, args=("back", server)),
        threading.Thread(target=receive, args=("there", server)),
        threading.Thread(target=receive, args=("back", client)),
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert digests == {"there": "whole", "back": "whole"}
    client.close()
    assert server.recv(1) == b"", "the other side has ended"
    server.close()
    wait_for_carriers(before)


def test_the_last_bytes_before_an_end_arrive(owned: ExitStack, directory: Path) -> None:
    server, client = connect(owned, directory, directory)
    assert isinstance(server, socket.socket)
    assert isinstance(client, socket.socket)
    client.sendall(b"x" * 300_000)
    client.close()
    assert len(server.recv(1 << 20, socket.MSG_WAITALL)) == 300_000


def test_a_handshake_can_wait_and_is_done_then(
    owned: ExitStack, directory: Path, tmp_path: Path
) -> None:
    server, client = connect(owned, directory, directory, later=True)
    assert isinstance(server, socket.socket)
    assert isinstance(client, socket.socket)
    server.sendall(b"hello")
    assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    other = certificates.write(tmp_path / "other", trustme.CA(), NAME)
    server, client = connect(owned, other, directory, later=True)
    assert "TLS: " in str(server)
    assert isinstance(client, socket.socket)
    assert client.recv(1) == b"", "the connection has ended"


def test_another_authoritys_certificate_is_refused_by_both(
    owned: ExitStack, directory: Path, tmp_path: Path
) -> None:
    other = certificates.write(tmp_path / "other", trustme.CA(), NAME)
    for server, client in ((directory, other), (other, directory)):
        told = connect(owned, server, client)
        assert "TLS: " in str(told[0]), told
        assert "self-signed certificate in certificate chain" in str(told[1]), told


@pytest.mark.parametrize("has_one", [True, False])
def test_a_client_needs_a_certificate_that_the_server_trusts(
    owned: ExitStack, directory: Path, authority: trustme.CA, tmp_path: Path, *, has_one: bool
) -> None:
    """A server of TLS asks nobody by default."""
    strange = certificates.write(tmp_path / "strange", trustme.CA(), NAME)
    authority.cert_pem.write_to_path(strange / "ca-cert.pem")  # it believes the server
    if not has_one:
        (strange / "client-key.pem").unlink()
    server, client = connect(owned, directory, strange)
    assert "TLS: " in str(server)
    # In TLS 1.3 the client learns of it when it reads.
    assert isinstance(client, Exception) or client.recv(1) == b""


def test_a_certificate_is_for_the_server_that_was_named(owned: ExitStack, directory: Path) -> None:
    told = connect(owned, directory, directory, "elsewhere.example")
    assert "hostname mismatch, certificate is not valid for 'elsewhere.example'" in str(told[1])


def test_a_peer_without_tls_is_refused(directory: Path) -> None:
    here, there = socket.socketpair()
    with there:
        there.sendall(b"this is no handshake at all")
        made = tls.context("--incoming x", directory, server=True)
        with pytest.raises(HostError, match="--incoming x: TLS: wrong version number"):
            tls.wrap("--incoming x", here, made)


def test_each_file_that_is_missing_or_wrong_is_named(authority: trustme.CA, tmp_path: Path) -> None:
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        directory = certificates.write(tmp_path / f"without-{name}", authority, NAME)
        (directory / name).write_text("x")
        with pytest.raises(UserError, match=f"--x: {directory}: .+PEM"):
            tls.context("--x", directory, server=True)
        (directory / name).unlink()
        with pytest.raises(UserError, match=f"{name}: No such file or directory"):
            tls.context("--x", directory, server=True)
