"""PCI functions as sysfs shows them: identity, driver, IOMMU group, BARs.

Source: Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups, sysfs-devices-vfio-dev.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.config.bdf import parse_bdf
from vmm.errors import UserError
from vmm.vfio.host_paths import HOST, HostPaths

if TYPE_CHECKING:
    from pathlib import Path

_IORESOURCE_IO: Final = 0x100
_IORESOURCE_MEM: Final = 0x200
_IORESOURCE_PREFETCH: Final = 0x2000
_IORESOURCE_MEM_64: Final = 0x100000
"""include/linux/ioport.h, as the third column of ``resource`` shows them."""

_DRIVER_MANAGED_DMA: Final = frozenset({"pcieport", "pci-stub", "shpchp"})
"""Drivers that a viable group may have besides VFIO's: they do no DMA with kernel memory
(``driver_managed_dma``, drivers/pci/pcie/portdrv.c, drivers/pci/pci-stub.c)."""


@dataclass(frozen=True)
class SysfsBar:
    """A base address register in use: *start* is a host physical address, *size* in bytes."""

    index: int
    start: int
    size: int
    flags: int

    @property
    def kind(self) -> str:
        """The kind of addresses that it decodes, in lspci's words."""
        if self.flags & _IORESOURCE_IO:
            return "I/O ports"
        width = "64-bit" if self.flags & _IORESOURCE_MEM_64 else "32-bit"
        return f"{width}, {'' if self.flags & _IORESOURCE_PREFETCH else 'non-'}prefetchable"

    @property
    def is_memory(self) -> bool:
        """Whether it is memory, not I/O ports."""
        return bool(self.flags & _IORESOURCE_MEM)


class HostFunction:
    """One PCI function of the host. Each attribute is read from sysfs when it is accessed."""

    def __init__(self, bdf: str, paths: HostPaths = HOST) -> None:
        self.bdf = bdf
        self.paths = paths
        self.path = paths.devices / bdf

    @classmethod
    def find(cls, address: str, paths: HostPaths = HOST) -> HostFunction:
        """Return the function at *address*. Raises `UserError` if there is none."""
        function = cls(parse_bdf(address), paths)
        if not function.path.exists():
            raise UserError(
                f"there is no PCI device {function.bdf}", "`pyvmm vfio list` shows those there are"
            )
        return function

    @classmethod
    def all(cls, paths: HostPaths = HOST) -> list[HostFunction]:
        """Return every PCI function of the host, in order of address."""
        if not paths.devices.is_dir():
            return []
        return [cls(path.name, paths) for path in sorted(paths.devices.iterdir())]

    def __str__(self) -> str:
        return self.bdf

    @property
    def vendor(self) -> int:
        """PCI vendor ID."""
        return self._number("vendor")

    @property
    def device(self) -> int:
        """PCI device ID."""
        return self._number("device")

    @property
    def class_code(self) -> int:
        """Class, subclass and programming interface, 24 bits."""
        return self._number("class")

    @property
    def modalias(self) -> str:
        """The text that module aliases match."""
        return self._read("modalias")

    @property
    def numa_node(self) -> int | None:
        """Its NUMA node; None if the host does not tell."""
        node = int(self._read("numa_node") or "-1")
        return node if node >= 0 else None

    @property
    def driver(self) -> str | None:
        """The name of its driver, if it has one."""
        return self._link("driver")

    @property
    def driver_override(self) -> str:
        """The only driver that may bind to it; empty: any that matches."""
        text = self._read("driver_override")
        return "" if text == "(null)" else text

    @property
    def iommu_group(self) -> int | None:
        """The number of its IOMMU group; None: no IOMMU translates its DMA."""
        name = self._link("iommu_group")
        return int(name) if name else None

    @property
    def group_members(self) -> list[HostFunction]:
        """The other functions of its IOMMU group, which the IOMMU cannot isolate from it."""
        directory = self.path / "iommu_group/devices"
        names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        return [HostFunction(name, self.paths) for name in names if name != self.bdf]

    @property
    def group_obstacles(self) -> list[HostFunction]:
        """Those of `group_members` whose drivers make the group not viable for VFIO."""
        return [
            member
            for member in self.group_members
            if member.driver
            and member.driver not in _DRIVER_MANAGED_DMA
            and not member.driven_by_vfio
        ]

    @property
    def vfio_name(self) -> str | None:
        """Its name among VFIO's devices, such as vfio0; needs a VFIO driver and Linux 6.1."""
        directory = self.path / "vfio-dev"
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        return names[0] if names else None

    @property
    def driven_by_vfio(self) -> bool:
        """Whether its driver is vfio-pci or a variant driver."""
        return self.vfio_name is not None or "vfio" in (self.driver or "")

    @property
    def bars(self) -> list[SysfsBar]:
        """Its base address registers as the host assigned them, with the ROM's as number 6."""
        found = []
        for index, line in enumerate(self._read("resource").splitlines()[:7]):
            start, end, flags = (int(field, 16) for field in line.split())
            if flags & (_IORESOURCE_IO | _IORESOURCE_MEM):
                found.append(SysfsBar(index, start, end - start + 1, flags))
        return found

    def _number(self, name: str) -> int:
        return int(self._read(name), 0)

    def _read(self, name: str) -> str:
        path = self.path / name
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            if self.path.exists():
                return ""  # an attribute that this kernel does not have
            raise UserError(f"PCI device {self.bdf} has gone") from None

    def _link(self, name: str) -> str | None:
        path: Path = self.path / name
        return path.readlink().name if path.is_symlink() else None
