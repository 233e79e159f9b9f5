"""One kind of lab host, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm.lab.debian.stock import Kernel, StockKernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Profile:
    """One kind of emulated arm64 host."""

    name: str
    description: str
    cpu: str
    """QEMU's CPU model, with its properties."""
    gic: int = 3
    """The interrupt controller's architecture version."""
    cpus: int = 2
    memory: int = 4 << 30
    """Bytes of RAM."""
    kernel: Kernel = field(default_factory=StockKernel)
    command_line: str = ""
    """Added to the kernel's command line."""
    machine: tuple[str, ...] = ()
    """More properties of QEMU's virt machine, for instance ``iommu=smmuv3``."""
    backends: tuple[tuple[str, str], ...] = ()
    """What devices need on our side, as QEMU's options: ("-drive", "..."), ("-netdev", "...")."""
    devices: tuple[str, ...] = ()
    """More devices, as after QEMU's -device."""
    device_tree: Callable[[Path], None] | None = None
    """Edits the machine's device tree: gets QEMU's own as a file, and rewrites it in place."""
    setup: tuple[str, ...] = ()
    """Shell commands that run in the host once it is up; the host is not ready before."""
