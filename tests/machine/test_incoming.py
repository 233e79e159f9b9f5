"""A destination that waits: who may come, and for how long."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.state import certificates
from tests.state.golden import golden
from vmm.errors import HostError, UserError
from vmm.machine import incoming
from vmm.machine.incoming import Incoming
from vmm.state import tls
from vmm.state.migration_messages import FORMAT, VERSION, Memory, Offer
from vmm.state.stream import Channel, prepare

NAME = "there.example"
OFFER = Offer(FORMAT, VERSION, golden("fwb").cpu, {}, Memory(1 << 30, 1 << 20, 4096), [], 2, "x")


def behind(listener: socket.socket, act: Callable[[tuple[str, int]], object]) -> int:
    """Have another process *act* with the address of *listener*; return its number."""
    child = os.fork()
    if not child:
        try:
            act(listener.getsockname())
        finally:
            os._exit(0)
    return child


def test_a_stranger_does_not_end_the_wait(tmp_path: Path) -> None:
    files = certificates.write(tmp_path / "pki", trustme.CA(), NAME)
    other = certificates.write(tmp_path / "other", trustme.CA(), NAME)
    listener = socket.create_server(("127.0.0.1", 0))
    said: list[str] = []

    def come(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        made = tls.context("", other, server=False)
        with pytest.raises(HostError):
            tls.wrap("", socket.create_connection(address), made, NAME)
        made = tls.context("", files, server=False)
        with tls.wrap("", socket.create_connection(address), made, NAME) as source:
            prepare(source)
            Channel(source, "").send(replace(OFFER, version=VERSION + 1))
            source.recv(1)

    child = behind(listener, come)
    with pytest.raises(UserError, match=r"the source: offer.version"):
        Incoming(listener, tls.context("", files, server=True), said.append)
    os.waitpid(child, 0)
    assert len(said) == 2
    assert all(line.startswith("not the source: TLS: ") for line in said)


def test_other_connections_are_waited_for_no_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incoming, "PATIENCE", 0.2)
    monkeypatch.setattr(Incoming, "_check_host", lambda _self: OFFER.cpu)
    listener = socket.create_server(("127.0.0.1", 0))

    def come(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as source:
            prepare(source)
            Channel(source, "").send(OFFER)
            source.recv(1)

    child = behind(listener, come)
    with pytest.raises(HostError, match=r"has not made its other connections in 0\.2 s"):
        Incoming(listener)
    os.waitpid(child, 0)
