"""Put walls around a machine's process before its guest runs: see cdefs/isolate.c.

Nothing takes them down. What is open stays open, so everything that a run needs has to be open, and
what is done late is the broker's (`vmm.broker`).
"""

from __future__ import annotations

import os
from typing import Final

from vmm._native import lib
from vmm.errors import HostError

FIRST_USER: Final = 0x7000_0000
"""Whom root becomes: this and its process ID. No such user has a name or a file, and no two
machines are the same."""

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


USER_WORKER = 0x4000
"""PF_USER_WORKER, since Linux 6.4: a kernel thread of this process, vhost's for example
(include/linux/sched.h). It never runs code of ours, and makes no system call."""


def _is_ours(thread: str) -> bool:
    """Tell whether a thread of this process, by its id, runs code of this process."""
    with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        flags = int(file.read().rpartition(")")[2].split()[6])
    return not flags & USER_WORKER


def isolate() -> list[str]:
    """Put up the walls that this host allows, and return their names. Raises `HostError`.

    To be called in a process with one thread.
    """
    threads = sum(map(_is_ours, os.listdir("/proc/self/task")))  # noqa: PTH208  (dear in a lab)
    if threads != 1:
        raise HostError(f"--sandbox: {threads} threads run before the guest does", "report this")
    walls = lib.pyvmm_isolate(FIRST_USER + os.getpid())
    if walls < 0:
        raise HostError(
            f"--sandbox: cannot isolate the process: {os.strerror(-walls)}",
            "leave it out with --sandbox off",
        )
    return [name for wall, name in WALLS.items() if walls & wall]
