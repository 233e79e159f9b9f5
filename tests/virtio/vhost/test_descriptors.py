"""Connecting to a daemon, and watching its rings, while descriptors run out."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.events import Events
from vmm.fd import EventFd
from vmm.virtio.queue import Areas
from vmm.virtio.vhost.backend import Ring
from vmm.virtio.vhost.inflight import Inflight
from vmm.virtio.vhost.service import Service


class Scarce:
    """Let a call succeed *left* times, then fail with EMFILE."""

    def __init__(self, call: object, left: int) -> None:
        self.call = call
        self.left = left

    def __call__(self, *arguments: object) -> object:
        if not self.left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.left -= 1
        return self.call(*arguments)  # type: ignore[operator]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("left", [0, 1])
def test_a_connection_is_one_clear_error(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(lambda fd: ["/bin/false", str(fd)], Events(), what="--share /x")
    before = open_files()
    monkeypatch.setattr(socket, "socket", Scarce(socket.socket, left))
    with pytest.raises(HostError, match=r"--share /x: cannot make a socket .*Too many open files"):
        service.connect()
    assert open_files() == before


@pytest.mark.parametrize("left", [0, 1])
def test_a_ring_is_one_clear_error(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventFd() as bell:
        areas = Areas(0, 0, 0)
        fd = bell.fileno()
        ring = Ring(size=8, guest=areas, host=areas, packed=False, base=0, kick=fd, call=fd, err=fd)
        before = open_files()
        monkeypatch.setattr(os, "eventfd", Scarce(os.eventfd, left))
        with pytest.raises(HostError, match="cannot make an eventfd: Too many open files"):
            Inflight(ring)
        assert open_files() == before
