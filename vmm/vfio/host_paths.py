"""Where the host keeps what we look at: directories that a test replaces by its own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class HostPaths(NamedTuple):
    """The roots of the host's file systems."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    lib: Path = Path("/lib")
    """Holds ``modules/<release>``."""
    run: Path = Path("/run/pyvmm")
    """The host's own run-time files. Not the user's: what we bind stays bound when a session
    ends, for all users, until the host goes down - and exactly so long does /run live."""

    @property
    def devices(self) -> Path:
        """One directory per PCI function."""
        return self.sys / "bus/pci/devices"

    @property
    def drivers(self) -> Path:
        """One directory per PCI driver."""
        return self.sys / "bus/pci/drivers"


HOST = HostPaths()
