"""The ioctls of VFIO and iommufd: one enumeration per kind of file.

They share one number space, and the same number means different things on different files
(100 + 13 is a device's hot reset and a container's DMA mapping).
"""

from __future__ import annotations

from enum import IntEnum, unique

from vmm._native import lib


@unique
class ContainerIoctl(IntEnum):
    """On /dev/vfio/vfio, and on the IOMMU that has been set there."""

    VFIO_GET_API_VERSION = lib.VFIO_GET_API_VERSION
    VFIO_CHECK_EXTENSION = lib.VFIO_CHECK_EXTENSION
    VFIO_SET_IOMMU = lib.VFIO_SET_IOMMU
    VFIO_IOMMU_GET_INFO = lib.VFIO_IOMMU_GET_INFO
    VFIO_IOMMU_MAP_DMA = lib.VFIO_IOMMU_MAP_DMA
    VFIO_IOMMU_UNMAP_DMA = lib.VFIO_IOMMU_UNMAP_DMA


@unique
class GroupIoctl(IntEnum):
    """On a group, /dev/vfio/N."""

    VFIO_GROUP_GET_STATUS = lib.VFIO_GROUP_GET_STATUS
    VFIO_GROUP_SET_CONTAINER = lib.VFIO_GROUP_SET_CONTAINER
    VFIO_GROUP_UNSET_CONTAINER = lib.VFIO_GROUP_UNSET_CONTAINER
    VFIO_GROUP_GET_DEVICE_FD = lib.VFIO_GROUP_GET_DEVICE_FD


@unique
class DeviceIoctl(IntEnum):
    """On a device: its own file, /dev/vfio/devices/vfioN, or what a group gave for it."""

    VFIO_DEVICE_GET_INFO = lib.VFIO_DEVICE_GET_INFO
    VFIO_DEVICE_GET_REGION_INFO = lib.VFIO_DEVICE_GET_REGION_INFO
    VFIO_DEVICE_GET_IRQ_INFO = lib.VFIO_DEVICE_GET_IRQ_INFO
    VFIO_DEVICE_SET_IRQS = lib.VFIO_DEVICE_SET_IRQS
    VFIO_DEVICE_RESET = lib.VFIO_DEVICE_RESET
    VFIO_DEVICE_FEATURE = lib.VFIO_DEVICE_FEATURE
    VFIO_DEVICE_BIND_IOMMUFD = lib.VFIO_DEVICE_BIND_IOMMUFD
    VFIO_DEVICE_ATTACH_IOMMUFD_PT = lib.VFIO_DEVICE_ATTACH_IOMMUFD_PT
    VFIO_DEVICE_DETACH_IOMMUFD_PT = lib.VFIO_DEVICE_DETACH_IOMMUFD_PT


@unique
class IommufdIoctl(IntEnum):
    """On an iommufd, /dev/iommu."""

    IOMMU_DESTROY = lib.IOMMU_DESTROY
    IOMMU_IOAS_ALLOC = lib.IOMMU_IOAS_ALLOC
    IOMMU_IOAS_IOVA_RANGES = lib.IOMMU_IOAS_IOVA_RANGES
    IOMMU_IOAS_MAP = lib.IOMMU_IOAS_MAP
    IOMMU_IOAS_MAP_FILE = lib.IOMMU_IOAS_MAP_FILE
    IOMMU_IOAS_UNMAP = lib.IOMMU_IOAS_UNMAP
