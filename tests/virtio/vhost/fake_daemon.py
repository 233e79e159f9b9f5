"""A vhost-user daemon in a thread: it answers correctly, or as a script says."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread

from vmm.virtio.vhost.message import HEADER, NEED_REPLY, REPLY, VERSION, Request

FEATURES = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 9
CONFIG = struct.pack("<QIIHBBI", 2048, 0, 126, 0, 0, 0, 512).ljust(60, b"\0")

Answer = Callable[[int, bytes], bytes | None]
"""Return the reply, given a request's number and the correct reply; None hangs up."""


def right(_request: int, answer: bytes) -> bytes:
    return answer


def framed(request: int, payload: bytes, flags: int = VERSION | REPLY) -> bytes:
    return HEADER.pack(request, flags, len(payload)) + payload


class FakeDaemon:
    """The daemon's end of a connection: the first replies are *script*'s, all others correct."""

    def __init__(self, script: Sequence[Answer] = (), *, fds: Sequence[int] = ()) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._script = list(script)
        self._fds = list(fds)
        self.requests: list[int] = []
        self.told: list[tuple[int, bytes]] = []
        """Requests, with their payloads and descriptors."""
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while (header := self._read(HEADER.size)) is not None:
                request, flags, size = HEADER.unpack(header)
                payload = self._read(size)
                if payload is None:
                    break
                self.requests.append(request)
                self.told.append((request, payload))
                answer = self._right(request, payload, needed=bool(flags & NEED_REPLY))
                if answer is None:
                    continue
                rule = self._script.pop(0) if self._script else right
                said = rule(request, answer)
                if said is None:
                    break
                if said:
                    socket.send_fds(self._theirs, [said], self._fds)
        self._theirs.close()

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            part, fds, _, _ = socket.recv_fds(self._theirs, size - len(data), 8)
            for fd in fds:
                os.close(fd)
            if not part:
                return None
            data += part
        return data

    def _right(self, request: int, payload: bytes, *, needed: bool) -> bytes | None:
        numbers = {
            Request.GET_FEATURES: FEATURES,
            Request.GET_PROTOCOL_FEATURES: 0xFFFF,
            Request.GET_QUEUE_NUM: 2,
        }
        if request in numbers:
            return framed(request, struct.pack("=Q", numbers[Request(request)]))
        if request == Request.GET_CONFIG:
            return framed(request, payload[:12] + CONFIG)
        return framed(request, bytes(8)) if needed else None

    def say(self, data: bytes) -> None:
        """Send something unasked."""
        self._theirs.sendall(data)

    def hang_up(self) -> None:
        """Hang up soon."""
        with suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self.hang_up()
        self._thread.join()


class FakeService:
    """A `vhost.service.Service` with a scripted daemon for each connection."""

    what = "--disk fake"

    def __init__(self, *scripts: Sequence[Answer], fds: Sequence[int] = ()) -> None:
        self._scripts = list(scripts)
        self._fds = fds
        self.daemons: list[FakeDaemon] = []

    def connect(self) -> socket.socket:
        self.close()
        script = self._scripts.pop(0) if self._scripts else ()
        self.daemons.append(FakeDaemon(script, fds=self._fds))
        return self.daemons[-1].ours

    def explain(self, problem: str) -> str:
        return f"the daemon {problem}"

    @property
    def refused(self) -> bool:
        return False

    def kill(self) -> None:
        self.close()

    def cancel_waits(self) -> None:
        self.daemons[-1].hang_up()

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
