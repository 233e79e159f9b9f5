"""The newer back end: iommufd and device files (Linux 6.6, CONFIG_VFIO_DEVICE_CDEV).

    /dev/iommu                   IOMMU_IOAS_ALLOC --> an address space, its id
    /dev/vfio/devices/vfioN      VFIO_DEVICE_BIND_IOMMUFD, then VFIO_DEVICE_ATTACH_IOMMUFD_PT to it

Source: Documentation/userspace-api/iommufd.rst, Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.vfio.fd import VfioError, VfioFd, open_node
from vmm.vfio.host_paths import HOST, HostPaths
from vmm.vfio.ioctls import DeviceIoctl, IommufdIoctl
from vmm.vfio.iommu import Iommu

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.vfio.function import HostFunction
    from vmm.vfio.kvm_files import KvmFiles

_FIXED: Final = lib.IOMMU_IOAS_MAP_FIXED_IOVA | lib.IOMMU_IOAS_MAP_READABLE


def device_node(function: HostFunction) -> Path | None:
    """Return the device's own file; None if this kernel makes none."""
    name = function.vfio_name
    node = function.paths.dev / "vfio/devices" / (name or "")
    return node if name and node.exists() else None


class Iommufd(Iommu):
    """One iommufd with one I/O address space."""

    name: ClassVar[str] = "iommufd"

    def __init__(self, paths: HostPaths = HOST, kvm: KvmFiles | None = None) -> None:
        """Open one. Raises `HostError`."""
        super().__init__(kvm)
        self._devices: list[VfioFd] = []
        path = paths.dev / "iommu"
        self._fd = VfioFd(open_node(path, "iommufd"), str(path))
        try:
            made = self._fd.ioctl_struct(IommufdIoctl.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc")
        except BaseException:
            self._fd.close()
            raise
        self._ioas = int(made.out_ioas_id)

    def _attach(self, function: HostFunction) -> VfioFd:
        node = device_node(function) or function.paths.dev / "vfio/devices"
        device = VfioFd(open_node(node, f"device {function.bdf}"), function.bdf)
        try:
            self._announce(device)
        except BaseException:
            device.close()
            raise
        try:
            device.ioctl_struct(
                DeviceIoctl.VFIO_DEVICE_BIND_IOMMUFD,
                "vfio_device_bind_iommufd",
                iommufd=self._fd.fileno(),
            )
            device.ioctl_struct(
                DeviceIoctl.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
                "vfio_device_attach_iommufd_pt",
                pt_id=self._ioas,
            )
        except BaseException:
            self.detach(device)
            raise
        self._devices.append(device)
        return device

    def detach(self, device: VfioFd) -> None:
        """Close the device, which detaches and unbinds it."""
        if device in self._devices:
            self._devices.remove(device)
        try:
            self._withdraw(device)
        finally:
            device.close()

    def iova_ranges(self) -> list[AddressRange]:
        """Return what can be mapped (IOMMU_IOAS_IOVA_RANGES). Raises `VfioError`."""
        request = IommufdIoctl.IOMMU_IOAS_IOVA_RANGES
        arg = ffi.new("struct iommu_ioas_iova_ranges *")
        arg.size = ffi.sizeof(arg[0])
        arg.ioas_id = self._ioas
        while True:
            room = arg.num_iovas
            ranges = ffi.new("struct iommu_iova_range[]", room or 1)
            arg.allowed_iovas = int(ffi.cast("uintptr_t", ranges))
            try:
                self._fd.ioctl(request, arg, ioas_id=self._ioas)
            except VfioError as error:
                if error.errno != errno.EMSGSIZE or arg.num_iovas <= room:
                    raise
                continue
            found = [ranges[i] for i in range(arg.num_iovas)]
            return [AddressRange.to(int(one.start), int(one.last) + 1) for one in found]

    def _map(self, iova: int, host_address: int, size: int, *, writable: bool) -> None:
        self._fd.ioctl_struct(
            IommufdIoctl.IOMMU_IOAS_MAP,
            "iommu_ioas_map",
            ioas_id=self._ioas,
            flags=_FIXED | (lib.IOMMU_IOAS_MAP_WRITEABLE if writable else 0),
            iova=iova,
            user_va=host_address,
            length=size,
        )

    def dma_map_file(self, iova: int, fd: int, size: int) -> None:
        """Map it; see `Iommu.dma_map_file`."""
        self._fd.ioctl_struct(
            IommufdIoctl.IOMMU_IOAS_MAP_FILE,
            "iommu_ioas_map_file",
            ioas_id=self._ioas,
            flags=_FIXED | lib.IOMMU_IOAS_MAP_WRITEABLE,
            fd=fd,
            iova=iova,
            length=size,
        )

    def _unmap(self, iova: int, size: int) -> None:
        self._fd.ioctl_struct(
            IommufdIoctl.IOMMU_IOAS_UNMAP,
            "iommu_ioas_unmap",
            ioas_id=self._ioas,
            iova=iova,
            length=size,
        )

    def _files(self) -> list[VfioFd]:
        return list(self._devices)

    def _close(self) -> None:
        self._fd.close()
