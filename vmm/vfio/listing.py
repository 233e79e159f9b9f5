"""`pyvmm vfio list`: what is known about each PCI device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmm.errors import VmmError
from vmm.vfio.binding import bound
from vmm.vfio.device import open_device
from vmm.vfio.function import HostFunction
from vmm.vfio.host_paths import HOST, HostPaths
from vmm.vfio.region_info import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.vfio.device import VfioDevice
    from vmm.vfio.region import VfioRegion

    Attribute = Callable[[VfioDevice, VfioRegion], str]
    """An open device and a region of it that can be mapped, to how its driver maps the region."""


@dataclass(frozen=True)
class RegionEntry:
    """A region. *mappable*: (offset, size) of mappable parts; None if VFIO was not asked."""

    index: int
    name: str
    size: int
    mappable: list[tuple[int, int]] | None
    attribute: str
    """How the driver maps it: cacheable, uncached, unknown; empty where it can't be mapped."""


@dataclass(frozen=True)
class DeviceEntry:
    """A device. *note* is why VFIO was not asked about its regions."""

    bdf: str
    vendor: int
    device: int
    class_code: int
    driver: str | None
    vfio: bool
    iommu_group: int | None
    shares_group_with: list[str]
    numa_node: int | None
    bound_by_pyvmm: bool
    regions: list[RegionEntry]
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        group = "no IOMMU" if self.iommu_group is None else f"group {self.iommu_group}"
        shared = f" with {', '.join(self.shares_group_with)}" if self.shares_group_with else ""
        ours = ", bound by pyvmm" if self.bound_by_pyvmm else ""
        has = f"{self.driver or 'no driver'}{ours}, {group}{shared}"
        return [
            f"{self.bdf}  {self.vendor:04x}:{self.device:04x}  class {self.class_code:06x}  {has}",
            *(f"    {_region_line(region)}" for region in self.regions),
            *([f"    {self.note}"] if self.note else []),
        ]


def _region_line(region: RegionEntry) -> str:
    if region.mappable is None:
        how = ""
    elif not region.mappable:
        how = "read and write only"
    elif [area for area in region.mappable if area[0] or area[1] < region.size]:
        areas = ", ".join(f"[{start:#x}, {start + size:#x})" for start, size in region.mappable)
        how = f"mappable: {areas}, {region.attribute}"
    else:
        how = f"mappable, {region.attribute}"
    return f"{region.index:2} {region.name:15} {_size(region.size):>9}  {how}".rstrip()


def _size(size: int) -> str:
    for unit, bits in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> bits:
            return f"{size / (1 << bits):.4g} {unit}"
    return f"{size} B"


def listing(
    attribute: Attribute, *, ask: bool = True, paths: HostPaths = HOST
) -> list[DeviceEntry]:
    """Return all PCI devices of the host.

    With *ask*, devices that have a VFIO driver and are not in use are opened, and so reset, to
    ask about their regions and, by *attribute*, how these are mapped. The other devices' regions
    are those in sysfs.
    """
    ours = set(bound(paths))
    return [
        _entry(function, attribute, ask=ask, bound_by_pyvmm=function.bdf in ours)
        for function in HostFunction.all(paths)
    ]


def _entry(
    function: HostFunction, attribute: Attribute, *, ask: bool, bound_by_pyvmm: bool
) -> DeviceEntry:
    regions: list[RegionEntry] | None = None
    note = ""
    if function.driven_by_vfio and ask:
        try:
            regions = _ask(function, attribute)
        except VmmError as error:
            note = str(error)
    return DeviceEntry(
        bdf=function.bdf,
        vendor=function.vendor,
        device=function.device,
        class_code=function.class_code,
        driver=function.driver,
        vfio=function.driven_by_vfio,
        iommu_group=function.iommu_group,
        shares_group_with=[member.bdf for member in function.group_members],
        numa_node=function.numa_node,
        bound_by_pyvmm=bound_by_pyvmm and function.driven_by_vfio,
        regions=_from_sysfs(function) if regions is None else regions,
        note=note,
    )


def _ask(function: HostFunction, attribute: Attribute) -> list[RegionEntry]:
    with open_device(function.bdf, paths=function.paths) as device:
        return [
            RegionEntry(
                region.index,
                region.info.name,
                region.size,
                [(area.base, area.size) for area in region.info.areas],
                attribute(device, region) if region.info.mappable else "",
            )
            for region in device.regions
        ]


def _from_sysfs(function: HostFunction) -> list[RegionEntry]:
    return [RegionEntry(bar.index, NAMES[bar.index], bar.size, None, "") for bar in function.bars]
