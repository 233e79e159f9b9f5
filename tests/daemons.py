"""The daemons of this process's broker, and waiting for what processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vmm import broker


def daemons() -> dict[int, str]:
    """Return process IDs and command lines of the programs that the broker has running."""
    parent = f"\nPPid:\t{broker.current().pid}\n"
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if parent in (path / "status").read_text():
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ").strip()
    return found


def alive(pid: int) -> bool:
    """Tell whether process *pid* runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(what: Callable[[], bool], patience: float = 30.0) -> None:
    """Wait until *what* is true, for *patience* seconds."""
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
