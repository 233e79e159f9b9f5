"""Why an ioctl of VFIO or iommufd is likely to have failed.

Keys are names, because ioctls of different files share numbers. Sources: drivers/vfio/
(group.c, container.c, device_cdev.c, vfio_iommu_type1.c, pci/vfio_pci_core.c),
drivers/iommu/iommu.c and drivers/iommu/iommufd/.
"""

from __future__ import annotations

import errno as e
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from enum import IntEnum

UNSAFE_INTERRUPTS: Final = (
    "the platform cannot keep the device's interrupts (MSI) to itself; if you trust the guest, "
    "set allow_unsafe_interrupts=1 of module {module}"
)
_PAGE = "address, IOVA or size is not a multiple of the IOMMU's page"
_RESERVED = "the IOVA is outside what the IOMMU can map, or in a range it reserves (MSI doorbells)"
_UNPINNABLE = (
    "part of the memory is not there, or cannot be pinned: device memory (a mapped BAR) can not"
)
_GONE = "the device has been unplugged or its driver unbound"

CAUSES: Final[dict[tuple[str, int], str]] = {
    ("VFIO_GROUP_SET_CONTAINER", e.EPERM): (
        "another device of the group is in the hands of a host driver or of another program"
    ),
    ("VFIO_GROUP_SET_CONTAINER", e.EBUSY): "the group's DMA is in other hands (a vIOMMU, SVA)",
    ("VFIO_GROUP_SET_CONTAINER", e.EINVAL): "the group is in a container already",
    ("VFIO_GROUP_GET_DEVICE_FD", e.ENODEV): "the device's driver is not one of VFIO's",
    ("VFIO_GROUP_GET_DEVICE_FD", e.EBUSY): "the device is in use",
    ("VFIO_SET_IOMMU", e.ENODEV): "no IOMMU driver for containers: modprobe vfio_iommu_type1",
    ("VFIO_SET_IOMMU", e.EPERM): UNSAFE_INTERRUPTS.format(module="vfio_iommu_type1"),
    ("VFIO_IOMMU_MAP_DMA", e.EINVAL): f"{_PAGE}, or {_RESERVED}",
    ("VFIO_IOMMU_MAP_DMA", e.EEXIST): "part of the IOVA range is mapped already",
    ("VFIO_IOMMU_MAP_DMA", e.ENOSPC): (
        "too many mappings: raise dma_entry_limit of module vfio_iommu_type1"
    ),
    (
        "VFIO_IOMMU_MAP_DMA",
        e.ENOMEM,
    ): ("the limit on locked memory (ulimit -l), or no memory is left"),
    ("VFIO_IOMMU_MAP_DMA", e.EFAULT): _UNPINNABLE,
    ("VFIO_IOMMU_UNMAP_DMA", e.EINVAL): "the range would split a mapping, or is not aligned",
    ("VFIO_IOMMU_UNMAP_DMA", e.ENOENT): "nothing is mapped there",
    ("VFIO_DEVICE_BIND_IOMMUFD", e.EPERM): (
        "another device of the group is in the hands of a host driver or of another program; or "
        + UNSAFE_INTERRUPTS.format(module="iommufd")
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.EBUSY): (
        "the device is in use, through its group (/dev/vfio/N)"
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.EINVAL): (
        "the device is in use, through its device file; or its DMA is not coherent with caches, "
        "which iommufd insists on (the group interface does not)"
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.ENODEV): _GONE,
    (
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        e.EBUSY,
    ): "the device or its neighbour is resetting",
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", e.EADDRINUSE): (
        "memory is mapped where this device's IOMMU reserves addresses"
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", e.ENOENT): "the iommufd has no such address space",
    ("VFIO_DEVICE_GET_REGION_INFO", e.EINVAL): "the device has no such region",
    ("VFIO_DEVICE_GET_IRQ_INFO", e.EINVAL): "the device has no such interrupt",
    ("VFIO_DEVICE_SET_IRQS", e.EINVAL): (
        "no such interrupt, more vectors than it has, or another kind of interrupt is in use"
    ),
    ("VFIO_DEVICE_SET_IRQS", e.ENOSPC): "the host has fewer free interrupt vectors",
    ("VFIO_DEVICE_RESET", e.EINVAL): "the device has no reset of its own",
    ("VFIO_DEVICE_RESET", e.ENOTTY): "the device has no reset of its own",
    ("IOMMU_IOAS_MAP", e.EINVAL): f"{_PAGE}, or {_RESERVED}",
    ("IOMMU_IOAS_MAP", e.EEXIST): "part of the IOVA range is mapped already",
    ("IOMMU_IOAS_MAP", e.EADDRINUSE): _RESERVED,
    ("IOMMU_IOAS_MAP", e.ENOMEM): (
        "the limit on locked memory (ulimit -l), which iommufd counts for all programs of a user "
        "together, or no memory is left"
    ),
    ("IOMMU_IOAS_MAP", e.EFAULT): _UNPINNABLE,
    ("IOMMU_IOAS_MAP_FILE", e.EINVAL): f"{_PAGE}, or {_RESERVED}",
    ("IOMMU_IOAS_MAP_FILE", e.ENODEV): "the device's memory is off",
    ("IOMMU_IOAS_MAP_FILE", e.EOPNOTSUPP): "this kernel maps no device memory for iommufd",
    ("VFIO_DEVICE_FEATURE", e.ENOTTY): "this kernel does not know it (dma-buf: Linux 6.19)",
    ("VFIO_DEVICE_FEATURE", e.EOPNOTSUPP): "the device's driver, or this host, does not have it",
    ("IOMMU_IOAS_UNMAP", e.ENOENT): "nothing is mapped there, or the range would split a mapping",
    ("mmap", e.EINVAL): "the driver does not map this part of the region",
    ("mmap", e.ENOMEM): "no room in our address space (ulimit -v), or too many mappings",
    ("mmap", e.EBUSY): "a driver of the host has this BAR",
}

GENERAL: Final[dict[int, str]] = {
    e.EBADF: "the descriptor is closed",
    e.ENODEV: _GONE,
    e.EIO: "the device does not answer: its memory is off, it is asleep, or it has been unplugged",
    e.ENOTTY: "this kernel does not know the ioctl",
    e.ENOMEM: "the host is out of memory",
    e.EMFILE: "too many open files: raise the limit (ulimit -n)",
    e.EPERM: "not permitted: run as a user who may, or as root",
    e.EACCES: "not permitted: run as a user who may, or as root",
}


def likely_cause(request: IntEnum | str, errno: int) -> str:
    """Return one clause that says why *request* is likely to have failed, or an empty string."""
    name = request if isinstance(request, str) else request.name
    return CAUSES.get((name, errno)) or GENERAL.get(errno, "")
