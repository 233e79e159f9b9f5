"""Causes of a failed call of VFIO or iommufd, the likeliest first.

Keys are names, because ioctls of different files share numbers. Sources: drivers/vfio/,
drivers/iommu/iommu.c and drivers/iommu/iommufd/ (Linux 7.3).
"""

from __future__ import annotations

import errno as e
from typing import TYPE_CHECKING, Final

from vmm import cause
from vmm.cause import Cause, General, Table, unaligned

if TYPE_CHECKING:
    from vmm.cause import FailedCall

_TYPE1: Final = "drivers/vfio/vfio_iommu_type1.c"
_GROUP: Final = "drivers/vfio/group.c"
_CONTAINER: Final = "drivers/vfio/container.c"
_CDEV: Final = "drivers/vfio/device_cdev.c"
_PCI: Final = "drivers/vfio/pci/vfio_pci_core.c"
_PAGETABLE: Final = "drivers/iommu/iommufd/io_pagetable.c"
_PAGES: Final = "drivers/iommu/iommufd/pages.c"


def _unsafe(module: str, where: str) -> Cause:
    return Cause(
        "the platform cannot keep the device's interrupts (MSI) to itself",
        f"if you trust the guest, set allow_unsafe_interrupts=1 of module {module}",
        where,
    )


def _unaligned(where: str, *arguments: str) -> Cause:
    return Cause(
        "address, IOVA or size is not a multiple of the IOMMU's page",
        "align them",
        where,
        check=unaligned(*arguments),
    )


def _reserved(where: str) -> Cause:
    return Cause(
        "the IOVA is outside what the IOMMU can map, or in a range it reserves (MSI doorbells)",
        "place it elsewhere: /sys/kernel/iommu_groups/N/reserved_regions has the ranges",
        where,
    )


_IN_OTHER_HANDS: Final = (
    "another device of the group is in the hands of a host driver or of another program"
)
_FREE_THEM: Final = "`pyvmm vfio list` shows the group: give all of it to VFIO"

CAUSES: Final[Table] = {
    ("VFIO_GROUP_SET_CONTAINER", e.EPERM): (
        Cause(_IN_OTHER_HANDS, _FREE_THEM, f"vfio_container_attach_group ({_CONTAINER})"),
    ),
    ("VFIO_GROUP_SET_CONTAINER", e.EBUSY): (
        Cause(
            "the group's DMA is in other hands (a vIOMMU, SVA)",
            "",
            "iommu_group_claim_dma_owner (drivers/iommu/iommu.c)",
        ),
    ),
    ("VFIO_GROUP_SET_CONTAINER", e.EINVAL): (
        Cause(
            "the group is in a container already",
            "take it out (VFIO_GROUP_UNSET_CONTAINER)",
            f"vfio_group_ioctl_set_container ({_GROUP})",
        ),
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", e.ENODEV): (
        Cause(
            "the device's driver is not one of VFIO's, or it is in another group",
            "`pyvmm vfio bind BDF`",
            f"vfio_device_get_from_name ({_GROUP})",
        ),
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", e.EBUSY): (
        Cause("the device is in use", "end what uses it", f"vfio_df_group_open ({_GROUP})"),
    ),
    ("VFIO_SET_IOMMU", e.ENODEV): (
        Cause(
            "no IOMMU driver for containers is there",
            "modprobe vfio_iommu_type1",
            f"vfio_ioctl_set_iommu ({_CONTAINER})",
        ),
    ),
    ("VFIO_SET_IOMMU", e.EPERM): (
        _unsafe("vfio_iommu_type1", f"vfio_iommu_type1_attach_group ({_TYPE1})"),
    ),
    ("VFIO_IOMMU_MAP_DMA", e.EINVAL): (
        _unaligned(f"vfio_dma_do_map ({_TYPE1})", "vaddr", "iova", "size"),
        _reserved(f"vfio_iommu_iova_dma_valid ({_TYPE1})"),
    ),
    ("VFIO_IOMMU_MAP_DMA", e.EEXIST): (
        Cause(
            "part of the IOVA range is mapped already",
            "unmap it first",
            f"vfio_dma_do_map ({_TYPE1})",
            certain=True,
        ),
    ),
    ("VFIO_IOMMU_MAP_DMA", e.ENOSPC): (
        Cause(
            "too many mappings",
            "raise dma_entry_limit of module vfio_iommu_type1",
            f"vfio_dma_do_map ({_TYPE1})",
            certain=True,
        ),
    ),
    ("VFIO_IOMMU_MAP_DMA", e.ENOMEM): (
        Cause(
            "the limit on locked memory (ulimit -l)",
            "raise it",
            f"vfio_pin_pages_remote ({_TYPE1})",
        ),
        cause.NO_MEMORY,
    ),
    ("VFIO_IOMMU_MAP_DMA", e.EFAULT): (
        Cause(
            "part of the memory is not there: nothing is mapped, or its device's memory is off",
            "map it first",
            f"vaddr_get_pfns ({_TYPE1})",
        ),
    ),
    ("VFIO_IOMMU_UNMAP_DMA", e.EINVAL): (
        Cause(
            "the range is not aligned",
            "align it",
            f"vfio_dma_do_unmap ({_TYPE1})",
            check=unaligned("iova", "size"),
        ),
        Cause(
            "the range would split a mapping",
            "unmap what was mapped, whole",
            f"vfio_dma_do_unmap ({_TYPE1})",
        ),
    ),
    ("VFIO_IOMMU_UNMAP_DMA", e.ENOENT): (
        Cause("nothing is mapped there", "", f"vfio_dma_do_unmap ({_TYPE1})", certain=True),
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.EPERM): (
        Cause(
            _IN_OTHER_HANDS,
            _FREE_THEM,
            "iommu_device_claim_dma_owner (drivers/iommu/iommu.c)",
        ),
        _unsafe("iommufd", "iommufd_device_bind (drivers/iommu/iommufd/device.c)"),
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.EBUSY): (
        Cause(
            "the device is in use, through its group (/dev/vfio/N)",
            "end what uses it",
            f"vfio_device_block_group ({_GROUP})",
        ),
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.EINVAL): (
        Cause(
            "the device is in use, through its device file",
            "end what uses it",
            f"vfio_df_ioctl_bind_iommufd ({_CDEV})",
        ),
        Cause(
            "its DMA is not coherent with caches, which iommufd insists on",
            "use the group interface (backend=group)",
            "iommufd_device_bind (drivers/iommu/iommufd/device.c)",
        ),
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", e.ENODEV): (
        Cause(
            "the device has been unplugged or its driver unbound",
            "",
            f"vfio_df_ioctl_bind_iommufd ({_CDEV})",
        ),
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", e.EBUSY): (
        Cause(
            "the device or its neighbour is resetting",
            "try again",
        ),
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", e.EADDRINUSE): (
        Cause(
            "memory is mapped where this device's IOMMU reserves addresses",
            "place it elsewhere",
            f"iopt_reserve_iova ({_PAGETABLE})",
        ),
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", e.ENOENT): (
        Cause("the iommufd has no such address space", "", f"vfio_df_ioctl_attach_pt ({_CDEV})"),
    ),
    ("VFIO_DEVICE_GET_REGION_INFO", e.EINVAL): (
        Cause(
            "the device has no such region",
            "VFIO_DEVICE_GET_INFO tells how many it has",
            f"vfio_pci_ioctl_get_region_info ({_PCI})",
        ),
    ),
    ("VFIO_DEVICE_GET_IRQ_INFO", e.EINVAL): (
        Cause("the device has no such interrupt", "", f"vfio_pci_ioctl_get_irq_info ({_PCI})"),
    ),
    ("VFIO_DEVICE_SET_IRQS", e.EINVAL): (
        Cause(
            "no such interrupt, or more vectors than it has",
            "VFIO_DEVICE_GET_IRQ_INFO tells how many",
            "vfio_set_irqs_validate_and_prepare (drivers/vfio/vfio_main.c)",
        ),
        Cause(
            "another kind of interrupt is in use",
            "switch that one of",
            "vfio_pci_set_msi_trigger (drivers/vfio/pci/vfio_pci_intrs.c)",
        ),
    ),
    ("VFIO_DEVICE_SET_IRQS", e.ENOSPC): (
        Cause(
            "the host has fewer free interrupt vectors",
            "",
            "vfio_msi_enable (drivers/vfio/pci/vfio_pci_intrs.c)",
        ),
    ),
    **{
        ("VFIO_DEVICE_RESET", number): (
            Cause(
                "the device has no reset of its own",
                "",
                f"vfio_pci_ioctl_reset ({_PCI})",
            ),
        )
        for number in (e.EINVAL, e.ENOTTY)
    },
    **{
        (call, e.EINVAL): (
            _unaligned(f"iopt_alloc_area_pages ({_PAGETABLE})", "iova", "user_va", "length"),
            _reserved(f"iopt_check_iova ({_PAGETABLE})"),
        )
        for call in ("IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE")
    },
    ("IOMMU_IOAS_MAP", e.EEXIST): (
        Cause(
            "part of the IOVA range is mapped already",
            "unmap it first",
            f"iopt_check_iova ({_PAGETABLE})",
            certain=True,
        ),
    ),
    ("IOMMU_IOAS_MAP", e.EADDRINUSE): (_reserved(f"iopt_check_iova ({_PAGETABLE})"),),
    ("IOMMU_IOAS_MAP", e.ENOMEM): (
        Cause(
            "the limit on locked memory (ulimit -l), which iommufd counts for all programs of a "
            "user together",
            "raise it",
            f"iopt_pages_update_pinned ({_PAGES})",
        ),
        cause.NO_MEMORY,
    ),
    ("IOMMU_IOAS_MAP", e.EFAULT): (
        Cause(
            "part of the memory is not there, or cannot be pinned: device memory (a mapped BAR) "
            "can not",
            "map it first; a BAR goes in by its dma-buf (IOMMU_IOAS_MAP_FILE)",
            f"pfn_reader_user_pin ({_PAGES})",
        ),
    ),
    ("IOMMU_IOAS_MAP_FILE", e.ENODEV): (
        Cause("the device's memory is of", "switch it on (command register, bit 1)"),
    ),
    ("IOMMU_IOAS_MAP_FILE", e.EOPNOTSUPP): (
        Cause("this kernel maps no device memory for iommufd", "Linux 6.19 does"),
    ),
    ("IOMMU_IOAS_UNMAP", e.ENOENT): (
        Cause(
            "nothing is mapped there, or the range would split a mapping",
            "unmap what was mapped, whole",
            f"iopt_unmap_iova_range ({_PAGETABLE})",
        ),
    ),
    ("VFIO_DEVICE_FEATURE", e.ENOTTY): (
        Cause(
            "this kernel does not know it (dma-buf: Linux 6.19)",
            "",
            "vfio_ioctl_device_feature (drivers/vfio/vfio_main.c)",
        ),
    ),
    ("VFIO_DEVICE_FEATURE", e.EOPNOTSUPP): (
        Cause("the device's driver, or this host, does not have it"),
    ),
    ("mmap", e.EINVAL): (
        Cause(
            "offset or size is not a multiple of the host's page, or is 0",
            "align them",
            "ksys_mmap_pgoff (mm/mmap.c)",
            check=unaligned("offset", "size"),
        ),
        Cause(
            "the driver does not map this part of the region",
            "VFIO_REGION_INFO_CAP_SPARSE_MMAP tells which it maps",
            f"vfio_pci_core_mmap ({_PCI})",
        ),
    ),
    ("mmap", e.ENOMEM): (
        Cause(
            "no room in our address space (ulimit -v)", "raise the limit", "mmap_region (mm/vma.c)"
        ),
        Cause("too many mappings", "raise vm.max_map_count", "do_mmap (mm/mmap.c)"),
    ),
    ("mmap", e.EBUSY): (
        Cause("a driver of the host has this BAR", "unbind it", f"vfio_pci_core_mmap ({_PCI})"),
    ),
}

GENERAL: Final[General] = {
    **cause.GENERAL,
    e.ENODEV: (Cause("the device has been unplugged or its driver unbound"),),
    e.EIO: (
        Cause(
            "the device does not answer: its memory is off, it is asleep, or it has been unplugged"
        ),
    ),
    e.ENOTTY: (Cause("this kernel does not know the ioctl"),),
}


def causes(call: FailedCall) -> list[Cause]:
    """Return what *call* may have failed from, the likeliest first."""
    return cause.find(call, CAUSES, GENERAL)
