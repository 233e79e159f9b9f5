"""Forward a live migration's frames between its two ends, and spoil one of them."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from threading import Lock, Thread
from typing import NamedTuple

from vmm._native import lib
from vmm.state.stream import prepare

HEADER = struct.Struct("<IIQ")
NAMES = {lib.PYVMM_FRAME_RAW: "pages", lib.PYVMM_FRAME_ZERO: "zeroes"}
FAILED = json.dumps({"message": "failed", "because": "a test", "remedy": ""}).encode()


class Step(NamedTuple):
    """A frame: its sender, its connection, its place among those, and what it is."""

    sender: str
    connection: int
    number: int
    what: str


class Fault(NamedTuple):
    """What happens at *step*.

    where  before the frame, inside it, after it, or instead of it
    how    cut: this connection ends; death: all end, as if a process is killed; silence: the
           sender says nothing from now on; garbage, failed: these are sent
    """

    step: Step
    where: str
    how: str


class Relay:
    """Accept *connections* at *near*, connect each to *far*, and do *fault*."""

    def __init__(self, far: str, connections: int, fault: Fault | None) -> None:
        self._far, self._connections, self._fault = far, connections, fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.steps: list[Step] = []
        self.done = False
        """Whether the fault happened."""
        self._lock = Lock()
        self._dead: set[int] = set()
        self._sockets: list[socket.socket] = []
        self._threads: list[Thread] = []

    def connect(self) -> list[socket.socket]:
        """Return the source's sockets, and begin."""
        found = []
        for connection in range(self._connections):
            source = socket.create_connection(self.address)
            near = self._listener.accept()[0]
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._far)
            prepare(source)
            self._sockets += [near, far]
            found.append(source)
            for sender, one, other in (("source", near, far), ("destination", far, near)):
                self._threads.append(
                    Thread(target=self._forward, args=(sender, connection, one, other))
                )
        for each in self._threads:
            each.start()
        return found

    def _forward(
        self, sender: str, connection: int, one: socket.socket, other: socket.socket
    ) -> None:
        number, silent = 0, False
        with suppress(OSError):
            while header := _read(one, HEADER.size):
                kind, _, size = HEADER.unpack(header)
                frame = header + _read(one, size)
                what = NAMES.get(kind) or str(json.loads(frame[HEADER.size :])["message"])
                step = Step(sender, connection, number, what)
                with self._lock:
                    self.steps.append(step)
                if self._fault is not None and self._fault.step[:3] == step[:3]:
                    self.done = True
                    silent = self._spoil(self._fault, frame, one, other)
                elif not silent and connection not in self._dead:
                    other.sendall(frame)
                number += 1
        _cut([one, other])

    def _spoil(self, fault: Fault, frame: bytes, one: socket.socket, other: socket.socket) -> bool:
        """Do *fault*; return whether this sender says nothing from now on."""
        if fault.how == "cut":  # before an answer to the frame can come
            self._dead.add(fault.step.connection)
        elif fault.how == "death":
            self._dead.update(range(self._connections))
        if fault.where == "inside":
            other.sendall(frame[: len(frame) // 2])
        elif fault.where == "after":
            other.sendall(frame)
        if fault.how == "cut":
            _cut([one, other])
        elif fault.how == "death":
            _cut(self._sockets)
        elif fault.how == "garbage":
            other.sendall(b"\xff" * len(frame))
        elif fault.how == "failed":
            other.sendall(HEADER.pack(lib.PYVMM_FRAME_TEXT, 0, len(FAILED)) + FAILED)
        return fault.how == "silence"

    def close(self) -> None:
        """End all connections, and wait for the threads."""
        _cut(self._sockets)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for each in (self._listener, *self._sockets):
            each.close()


def _read(one: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := one.recv(size - len(data))):
        data += more
    return bytes(data)


def _cut(found: list[socket.socket]) -> None:
    for each in found:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
