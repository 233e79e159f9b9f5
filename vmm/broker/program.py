"""Start a program for the broker: what it inherits, and nothing else (cdefs/spawn.c)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.broker.walls import Walls

ENVIRONMENT: Final = (b"PATH", b"TMPDIR", b"LANG", b"LC_ALL", b"TZ")
"""What a daemon gets of this process's environment: the rest, keys and tokens among it, is not for
a process that a guest talks to."""


def _environment() -> Iterator[bytes]:
    return (b"%s=%s" % (name, os.environb[name]) for name in ENVIRONMENT if name in os.environb)


def start(argv: Sequence[str], fds: Sequence[int], walls: Walls | None = None) -> int:
    """Start a program with *fds* as its descriptors 0 and following; return its process ID.

    Without *argv* only its walls are tried: the process ends. Raises OSError.
    """
    words = [ffi.new("char[]", os.fsencode(word)) for word in argv]
    environment = [ffi.new("char[]", each) for each in _environment()]
    arrays = [ffi.new("char *[]", [*each, ffi.NULL]) for each in (words, environment)]
    numbers = ffi.new("int[]", list(fds)), ffi.new("int[]", len(fds))
    program = ffi.new(
        "struct pyvmm_program *",
        {
            "path": words[0] if words else ffi.NULL,
            "argv": arrays[0],
            "envp": arrays[1],
            "fd_count": len(fds),
            "fds": numbers[0],
            "moved": numbers[1],
            "walls": walls.native if walls is not None else ffi.NULL,
        },
    )
    pid = int(lib.pyvmm_spawn(program))
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid
