"""Connecting to a daemon, and watching its rings, while descriptors run out."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemons import daemons
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


@contextmanager
def room(left: int) -> Iterator[None]:
    """Leave room for *left* more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    filled = []
    with suppress(OSError):
        while True:
            filled.append(os.dup(2))
    for fd in filled[len(filled) - left :]:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in filled[: len(filled) - left]:
            os.close(fd)


@pytest.mark.parametrize("left", range(5))
def test_a_connection_is_one_clear_error(left: int) -> None:
    """A connection takes five: two sockets, a pipe, the process. Nothing is left."""
    service = Service(lambda _fd: ["/bin/sleep", "1000"], Events(), what="--share /x")
    before = open_files()
    with room(left), pytest.raises(HostError, match="Too many open files"):
        service.connect()
    assert open_files() == before
    assert daemons() == {}


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
