"""A host's PCI functions as a tree of files, and a kernel that binds their drivers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.vfio.host_paths import HostPaths

if TYPE_CHECKING:
    from pathlib import Path

GPU = "0000:01:00.0"
AUDIO = "0000:01:00.1"
DISK = "0000:02:00.0"


@dataclass
class Tree:
    """The files; `write` is what the kernel does when one of them is written."""

    root: Path
    refuses: set[str] = field(default_factory=set)
    """Drivers that take no device."""
    probed: dict[str, int] = field(default_factory=dict)
    """Functions that get an IOMMU group when first a driver is bound to them, and its number."""
    written: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = HostPaths(
            *(self.root / name for name in ("sys", "dev", "proc", "lib", "run/pyvmm"))
        )
        for path in (self.paths.devices, self.paths.drivers, self.paths.proc):
            path.mkdir(parents=True)
        (self.paths.dev / "vfio/devices").mkdir(parents=True)

    def function(
        self,
        bdf: str,
        *,
        group: int | None = None,
        driver: str | None = None,
        ids: tuple[int, int] = (0x10DE, 0x2342),
        class_code: int = 0x030200,
        resource: str = "",
        numa_node: int = -1,
    ) -> Path:
        """Add a function."""
        path = self.paths.devices / bdf
        path.mkdir()
        vendor, device = ids
        for name, text in {
            "vendor": f"{vendor:#06x}",
            "device": f"{device:#06x}",
            "class": f"{class_code:#08x}",
            "numa_node": f"{numa_node}",
            "driver_override": "(null)",
            "resource": resource,
            "modalias": f"pci:v{vendor:08X}d{device:08X}sv00001234sd00005678bc03sc02i00",
        }.items():
            (path / name).write_text(f"{text}\n")
        if group is not None:
            self._join(path, group)
        if driver:
            self.driver(driver)
            (path / "driver").symlink_to(self.paths.drivers / driver)
        return path

    def _join(self, path: Path, group: int) -> None:
        members = self.paths.sys / f"kernel/iommu_groups/{group}/devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / path.name).symlink_to(path)
        (path / "iommu_group").symlink_to(members.parent)

    def iommu(self) -> None:
        """Add an IOMMU."""
        (self.paths.sys / "class/iommu/smmu3.0x9050000").mkdir(parents=True)

    def driver(self, name: str) -> None:
        """Add a driver."""
        (self.paths.drivers / name).mkdir(exist_ok=True)

    def process(self, pid: int, name: str, *open_files: Path) -> None:
        """Add a process with files open."""
        directory = self.paths.proc / str(pid) / "fd"
        directory.mkdir(parents=True)
        (directory.parent / "comm").write_text(f"{name}\n")
        for number, path in enumerate(open_files):
            (directory / str(number)).symlink_to(path)

    def modules(self, aliases: str, builtin: bytes = b"") -> None:
        """Add what the running kernel's modules say they are for."""
        directory = self.paths.lib / "modules" / os.uname().release
        directory.mkdir(parents=True)
        (directory / "modules.alias").write_text(aliases)
        if builtin:
            (directory / "modules.builtin.modinfo").write_bytes(builtin)

    def write(self, path: Path, text: str) -> None:
        """Be the kernel: act on what is written to *path*."""
        self.written.append(f"{path.parent.name}/{path.name}={text.strip()}")
        if path.name == "driver_override":
            path.write_text(f"{text.strip() or '(null)'}\n")
        elif path.name == "unbind":
            (self.paths.devices / text / "driver").unlink()
        elif path.name == "bind":
            device = self.paths.devices / text
            override = (device / "driver_override").read_text().strip()
            if path.parent.name in self.refuses or override not in ("(null)", path.parent.name):
                raise HostError(f"cannot write {text!r} to {path}: No such device")
            if text in self.probed:
                self._join(device, self.probed.pop(text))
            (device / "driver").symlink_to(path.parent)
