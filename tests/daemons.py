"""The daemons of this process's broker."""

from __future__ import annotations

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
