"""The older back end: IOMMU groups in a container, with a type 1 IOMMU. All kernels have it.

    /dev/vfio/vfio    a container: an address space, after a group is added and VFIO_SET_IOMMU
    /dev/vfio/N       group N: VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD by address

Source: Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.errors import HostError
from vmm.vfio.assignability import obstacle
from vmm.vfio.fd import VfioError, VfioFd, open_node
from vmm.vfio.host_paths import HOST, HostPaths
from vmm.vfio.info_caps import info_caps
from vmm.vfio.ioctls import ContainerIoctl, GroupIoctl
from vmm.vfio.iommu import Iommu

if TYPE_CHECKING:
    from vmm.vfio.function import HostFunction
    from vmm.vfio.kvm_files import KvmFiles

_ALL: Final = AddressRange(0, 1 << 64)


class _Group(NamedTuple):
    """An open group, and those of its devices that are open."""

    fd: VfioFd
    number: int
    devices: list[VfioFd]


class Container(Iommu):
    """One container with a type 1 IOMMU."""

    name: ClassVar[str] = "group"

    def __init__(self, paths: HostPaths = HOST, kvm: KvmFiles | None = None) -> None:
        """Open one. Raises `HostError`."""
        super().__init__(kvm)
        self._groups: list[_Group] = []
        path = paths.dev / "vfio/vfio"
        self._fd = VfioFd(open_node(path, "VFIO container"), str(path))
        try:
            self._check()
        except BaseException:
            self._fd.close()
            raise

    def _check(self) -> None:
        version = self._fd.ioctl(ContainerIoctl.VFIO_GET_API_VERSION)
        if version != lib.VFIO_API_VERSION:
            raise HostError(f"VFIO speaks version {version}, not {lib.VFIO_API_VERSION}")
        kind = lib.VFIO_TYPE1v2_IOMMU
        if not self._fd.ioctl(ContainerIoctl.VFIO_CHECK_EXTENSION, kind, extension=kind):
            raise HostError(
                "this host has no type 1 IOMMU driver for VFIO", "modprobe vfio_iommu_type1"
            )

    def _attach(self, function: HostFunction) -> VfioFd:
        number = function.iommu_group
        assert number is not None  # check_assignable has checked it
        group = next((group for group in self._groups if group.number == number), None)
        group = group or self._add_group(function, number)
        name = ffi.new("char[]", function.bdf.encode())
        try:
            fd = group.fd.ioctl(
                GroupIoctl.VFIO_GROUP_GET_DEVICE_FD,
                name,
                device=function.bdf,
            )
        except BaseException:
            self._drop(group)
            raise
        group.devices.append(VfioFd(fd, function.bdf))
        return group.devices[-1]

    def _add_group(self, function: HostFunction, number: int) -> _Group:
        node = function.paths.dev / "vfio" / str(number)
        try:
            fd = VfioFd(open_node(node, f"IOMMU group of {function.bdf}"), str(node))
        except HostError as error:  # EBUSY: a group is opened once
            raise (obstacle(function) or error) from error
        try:
            status = fd.ioctl_struct(GroupIoctl.VFIO_GROUP_GET_STATUS, "vfio_group_status")
            if not status.flags & lib.VFIO_GROUP_FLAGS_VIABLE and (found := obstacle(function)):
                raise found  # noqa: TRY301  (the descriptor is closed below)
            container = ffi.new("int *", self._fd.fileno())
            fd.ioctl(
                GroupIoctl.VFIO_GROUP_SET_CONTAINER,
                container,
                container=self._fd.fileno(),
            )
            if not self._groups:  # the last group to leave resets the IOMMU
                kind = lib.VFIO_TYPE1v2_IOMMU
                self._fd.ioctl(ContainerIoctl.VFIO_SET_IOMMU, kind, iommu=kind)
            self._announce(fd)
        except BaseException:
            fd.close()
            raise
        self._groups.append(_Group(fd, number, []))
        return self._groups[-1]

    def detach(self, device: VfioFd) -> None:
        """Close the device, and its group with the last of its devices.

        With the last group the kernel undoes all DMA mappings.
        """
        device.close()
        for group in list(self._groups):
            if device in group.devices:
                group.devices.remove(device)
                self._drop(group)

    def _drop(self, group: _Group) -> None:
        if group.devices:
            return
        self._groups.remove(group)
        try:
            self._withdraw(group.fd)
        finally:
            group.fd.close()
            if not self._groups:
                self._mapped.clear()

    def iova_ranges(self) -> list[AddressRange]:
        """Return what can be mapped; before Linux 5.4 the kernel does not tell."""
        request = ContainerIoctl.VFIO_IOMMU_GET_INFO
        answer = self._fd.ioctl_whole(request, "vfio_iommu_type1_info")
        info = ffi.from_buffer("struct vfio_iommu_type1_info *", answer)
        has_chain = info.flags & lib.VFIO_IOMMU_INFO_CAPS
        for cap in info_caps(answer, info.cap_offset if has_chain else 0):
            if cap.id == lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                name = "struct vfio_iommu_type1_info_cap_iova_range"
                count = cap.struct(name).nr_iovas
                found = cap.struct(name, count, "struct vfio_iova_range")
                ranges = [found.iova_ranges[i] for i in range(count)]
                return [AddressRange.to(int(one.start), int(one.end) + 1) for one in ranges]
        return [_ALL]

    def _map(self, iova: int, host_address: int, size: int, *, writable: bool) -> None:
        self._fd.ioctl_struct(
            ContainerIoctl.VFIO_IOMMU_MAP_DMA,
            "vfio_iommu_type1_dma_map",
            flags=lib.VFIO_DMA_MAP_FLAG_READ | (lib.VFIO_DMA_MAP_FLAG_WRITE if writable else 0),
            vaddr=host_address,
            iova=iova,
            size=size,
        )

    def _unmap(self, iova: int, size: int) -> None:
        request = ContainerIoctl.VFIO_IOMMU_UNMAP_DMA
        done = self._fd.ioctl_struct(request, "vfio_iommu_type1_dma_unmap", iova=iova, size=size)
        if not done.size:  # not an error here, unlike iommufd
            raise VfioError(self._fd.name, request, errno.ENOENT, {"iova": iova, "size": size})

    def _files(self) -> list[VfioFd]:
        return [group.fd for group in self._groups]

    def _close(self) -> None:
        with ExitStack() as each:  # each runs even if another raises; last first
            each.callback(self._fd.close)
            for group in self._groups:
                each.callback(group.fd.close)
                each.callback(self._withdraw, group.fd)
                for device in group.devices:
                    each.callback(device.close)
            self._groups.clear()
