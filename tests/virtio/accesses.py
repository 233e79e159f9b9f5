"""Log each access of C to guest memory, and spoil what it has read (tests/virtio/accesses.c)."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.virtio.guarded import Guarded

SUPPORTED: Final = platform.machine() == "x86_64"
"""Whether a program can single-step itself here."""

ROOM: Final = 1 << 16
"""Accesses that one log has room for."""


class Access(NamedTuple):
    """One access, at *offset* in the memory that is watched."""

    offset: int
    writes: bool


class _Entry(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("writes", ctypes.c_uint64))


class Watcher:
    """What `accesses.c` does, compiled in *directory*."""

    def __init__(self, directory: Path) -> None:
        library = directory / "accesses.so"
        source = Path(__file__).with_name("accesses.c")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        self._c = ctypes.CDLL(str(library))
        self._c.unwatch_pages.restype = ctypes.c_size_t
        self._log = (_Entry * ROOM)()

    @contextmanager
    def watching(
        self, mapping: Guarded, *, first: int = 0, descriptors: int = 0, end: int = 0
    ) -> Iterator[list[Access]]:
        """Fill the list with all accesses in the meantime, which may come from C only.

        What was read at offsets of *mapping* from *first* on is all ones afterwards: 16 bytes
        before *descriptors*, and two from there to *end*.
        """
        found: list[Access] = []
        numbers = (len(mapping.view), ctypes.byref(self._log), ROOM, first, descriptors, end)
        size, log, *rest = numbers
        self._c.watch_pages(
            ctypes.c_void_p(mapping.address),
            ctypes.c_size_t(size),
            log,
            *map(ctypes.c_size_t, rest),
        )
        try:
            yield found
        finally:
            count = self._c.unwatch_pages()
            assert count <= ROOM, "the log is full"
            found += [Access(each.offset, bool(each.writes)) for each in self._log[:count]]

    def write_before(self, cue: int, cues: int, place: int, news: int) -> None:
        """Right before the *cues*-th write to offset *cue*, write the 16 bits *news* to *place*.

        While `watching`: so a driver can act at the worst moment.
        """
        self._c.write_before(*map(ctypes.c_size_t, (cue, cues, place)), ctypes.c_uint16(news))
