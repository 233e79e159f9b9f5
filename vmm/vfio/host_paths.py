"""The host's directories that this package reads; tests replace them by their own."""

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
    """Records of bound devices. Not in the user's runtime directory: a binding outlasts the
    session, for all users, until the host goes down, and /run lives as long."""

    @property
    def devices(self) -> Path:
        """One directory per PCI function."""
        return self.sys / "bus/pci/devices"

    @property
    def drivers(self) -> Path:
        """One directory per PCI driver."""
        return self.sys / "bus/pci/drivers"


HOST = HostPaths()
