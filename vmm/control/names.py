"""Names of running machines, and their sockets.

<run directory>/machines/NAME.socket    `vmm.run_directory`; mode 0600
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm.config.control import check_name
from vmm.run_directory import subdirectory

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config.control import ControlConfig

SUFFIX: Final = ".socket"


def name_of(config: ControlConfig) -> str:
    """Return the machine's name: its own, or else ``vm-`` and this process's ID."""
    return config.name or f"vm-{os.getpid()}"


def socket_of(name: str) -> Path:
    """Return where the machine *name* listens. Raises `UserError`: no machine has such a name."""
    check_name(name)
    return subdirectory("machines") / f"{name}{SUFFIX}"


def names() -> list[str]:
    """Return the names of machines that have a socket, sorted. They may have died since."""
    paths = subdirectory("machines").glob(f"*{SUFFIX}")
    return sorted(path.name.removesuffix(SUFFIX) for path in paths)
