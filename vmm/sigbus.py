"""SIGBUS in a mapped file: an error that names the file, and not the end of the process.

    access to a page that is gone --SIGBUS--> cdefs/sigbus.c: a page of zeroes takes its place
                                                  '--eventfd--> Teller: the loop hears of it

A file can be made shorter by whoever may write it, and its file system can be full. Only what
this process maps and others can change so is watched.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.closeable import Closeable
from vmm.errors import HostError
from vmm.fd import EventFd

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Loop


class LostError(HostError):
    """A page of a mapped file is gone: *name* is the file, *offset* where in it, in bytes."""

    def __init__(self, name: str, offset: int) -> None:
        super().__init__(
            f"{name}: the file was made shorter, its file system is full or its disk fails: "
            f"nothing is left at byte {offset} of what is mapped of it",
            "let nobody change it meanwhile",
        )
        self.name = name
        self.offset = offset


_lock = Lock()
_watched: dict[int, Watched] = {}


class Watched(Closeable):
    """A mapping at *address* of *size* bytes of the file *name*, until `close`.

    Close it before the addresses are used for anything else. Raises `HostError`.
    """

    def __init__(self, name: str, address: int, size: int) -> None:
        self.name = name
        with _lock:
            self._entry = int(lib.pyvmm_sigbus_watch(address, size))
            if self._entry < 0:
                raise HostError(f"{name}: too many files are mapped", "use fewer")
            _watched[self._entry] = self

    def check(self) -> None:
        """Raise `LostError` if a page is gone."""
        offset = int(lib.pyvmm_sigbus_lost(self._entry)) if self._entry >= 0 else -1
        if offset >= 0:
            raise LostError(self.name, offset)

    def close(self) -> None:
        """Watch it no longer. Idempotent."""
        with _lock:
            entry, self._entry = self._entry, -1
            if entry >= 0:
                del _watched[entry]
                lib.pyvmm_sigbus_forget(entry)


def check() -> None:
    """Raise `LostError` for a page that a mapped file has lost. Thread-safe."""
    for each in _watched.copy().values():
        each.check()


class Teller(Closeable):
    """Call *on_loss* in *loop*'s thread with the error, at a page that a mapped file loses.

    One at a time tells.
    """

    def __init__(self, loop: Loop, on_loss: Callable[[LostError], object]) -> None:
        self._loop = loop
        self._on_loss = on_loss
        self._eventfd = EventFd()
        loop.add_reader(self._eventfd.fileno(), self._tell)
        lib.pyvmm_sigbus_tell(self._eventfd.fileno())

    def _tell(self) -> None:
        self._eventfd.drain()
        try:
            check()
        except LostError as error:
            self._on_loss(error)

    def close(self) -> None:
        """Tell of nothing more. Idempotent."""
        lib.pyvmm_sigbus_tell(-1)
        with suppress(KeyError):
            self._loop.remove_reader(self._eventfd.fileno())
        self._eventfd.close()
