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
    """The devices' back ends, as QEMU's options: ("-drive", "..."), ("-netdev", "...")."""
    devices: tuple[str, ...] = ()
    """More devices: arguments of QEMU's -device."""
    device_tree: Callable[[Path], None] | None = None
    """A function that edits a device tree in place: it gets the path of the one that QEMU wrote."""
    setup: tuple[str, ...] = ()
    """Shell commands that run in the host before it counts as up."""
