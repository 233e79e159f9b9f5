"""Put walls around a machine's process before its guest runs: see cdefs/isolate.c.

Nothing takes them down. What is open stays open, so everything that a run needs has to be open, and
what is done late is the broker's (`vmm.broker`).
"""

from __future__ import annotations

import os
from typing import Final

from vmm._native import lib
from vmm.errors import HostError

FIRST_USER: Final[int] = lib.PYVMM_FIRST_USER
"""Whom root becomes: this and its process ID. No such user has a name or a file, and no two
processes are the same: neither machines nor daemons (cdefs/walls.c)."""

WALLS: Final = {
    lib.PYVMM_WALL_USER: "user",
    lib.PYVMM_WALL_FILES: "files",
    lib.PYVMM_WALL_NETWORK: "network",
    lib.PYVMM_WALL_IPC: "ipc",
    lib.PYVMM_WALL_LANDLOCK: "landlock",
    lib.PYVMM_WALL_TCP: "tcp",
    lib.PYVMM_WALL_SCOPE: "scope",
}
"""What each wall is called in events."""


def isolate() -> list[str]:
    """Put up the walls that this host allows, and return their names. Raises `HostError`.

    To be called in a process with one thread.
    """
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208  (pathlib is dear in a lab)
    if threads != 1:
        raise HostError(f"--sandbox: {threads} threads run before the guest does", "report this")
    walls = lib.pyvmm_isolate(FIRST_USER + os.getpid())
    if walls < 0:
        raise HostError(
            f"--sandbox: cannot isolate the process: {os.strerror(-walls)}",
            "leave it out with --sandbox off",
        )
    return [name for wall, name in WALLS.items() if walls & wall]
