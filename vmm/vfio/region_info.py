"""VFIO's description of a region: its size, and which parts can be mapped."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.errors import UserError
from vmm.vfio.info_caps import info_caps
from vmm.vfio.ioctls import DeviceIoctl

if TYPE_CHECKING:
    from vmm.vfio.fd import VfioFd

CONFIG: Final = int(lib.VFIO_PCI_CONFIG_REGION_INDEX)
NAMES: Final = {
    **{int(lib.VFIO_PCI_BAR0_REGION_INDEX) + bar: f"BAR{bar}" for bar in range(6)},
    int(lib.VFIO_PCI_ROM_REGION_INDEX): "ROM",
    CONFIG: "config",
    int(lib.VFIO_PCI_VGA_REGION_INDEX): "VGA",
}
"""Region indices above these are a driver's own."""


def region_index(text: str) -> int:
    """Return the index of the region *text*: 4, BAR4, ROM... Raises `UserError`."""
    if text.isascii() and text.isdecimal():
        return int(text)
    for index, name in NAMES.items():
        if name.lower() == text.lower():
            return index
    raise UserError(
        f"{text!r} is no region of a PCI device",
        f"it is a number (0 is BAR0), or one of {', '.join(NAMES.values())}",
    )


@dataclass(frozen=True)
class RegionInfo:
    """VFIO's description of a region.

    index, size   in bytes; a size of 0 means that the device has no such region
    offset        where it starts in the device's file
    flags         VFIO_REGION_INFO_FLAG_*
    areas         which parts of it can be mapped, in order
    msix          whether the part with the MSI-X table can be mapped as well
    type          (type, subtype) of a region that is the driver's own
    """

    index: int
    size: int
    offset: int
    flags: int
    areas: tuple[AddressRange, ...] = ()
    msix: bool = False
    type: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """PCI's name for it."""
        return NAMES.get(self.index, "device-specific")

    @property
    def readable(self) -> bool:
        """Whether it can be read."""
        return bool(self.flags & lib.VFIO_REGION_INFO_FLAG_READ)

    @property
    def writable(self) -> bool:
        """Whether it can be written."""
        return bool(self.flags & lib.VFIO_REGION_INFO_FLAG_WRITE)

    @property
    def mappable(self) -> bool:
        """Whether any of it can be mapped."""
        return bool(self.areas)

    @classmethod
    def ask(cls, device: VfioFd, index: int) -> RegionInfo:
        """Ask VFIO. Raises `VfioError`; EINVAL: the device has no region *index*."""
        request = DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO
        return cls.parse(device.ioctl_whole(request, "vfio_region_info", index=index))

    @classmethod
    def parse(cls, answer: bytes, page: int = mmap.PAGESIZE) -> RegionInfo:
        """Parse ``struct vfio_region_info`` and its capability chain. Raises `InfoCapsError`."""
        info = ffi.from_buffer("struct vfio_region_info *", answer)
        sparse: list[AddressRange] | None = None
        msix = False
        type_: tuple[int, int] | None = None
        has_chain = info.flags & lib.VFIO_REGION_INFO_FLAG_CAPS
        for cap in info_caps(answer, info.cap_offset if has_chain else 0):
            if cap.id == lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                name = "struct vfio_region_info_cap_sparse_mmap"
                item = "struct vfio_region_sparse_mmap_area"
                count = cap.struct(name).nr_areas
                found = cap.struct(name, count, item)
                sparse = [
                    AddressRange(found.areas[i].offset, found.areas[i].size) for i in range(count)
                ]
            elif cap.id == lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE:
                msix = True
            elif cap.id == lib.VFIO_REGION_INFO_CAP_TYPE:
                found = cap.struct("struct vfio_region_info_cap_type")
                type_ = found.type, found.subtype
        areas: tuple[AddressRange, ...] = ()
        if info.size and info.flags & lib.VFIO_REGION_INFO_FLAG_MMAP:
            areas = _areas(info.size, sparse, page)
        return cls(info.index, info.size, info.offset, info.flags, areas, msix, type_)


def _areas(size: int, sparse: list[AddressRange] | None, page: int) -> tuple[AddressRange, ...]:
    """Return what can be mapped, in whole pages and within the region.

    A BAR smaller than a page counts as a whole one: VFIO lets it be mapped only if nothing else is
    in that page (vfio_pci_probe_mmaps).
    """
    limit = size + -size % page
    if sparse is None:
        return (AddressRange(0, limit),)
    found = []
    for area in sorted(sparse, key=lambda area: area.base):
        start = area.base + -area.base % page
        end = min(area.end + -area.end % page if area.end == size else area.end, limit)
        end -= end % page
        if start < end:
            found.append(AddressRange(start, end - start))
    return tuple(found)
