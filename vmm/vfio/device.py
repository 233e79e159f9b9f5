"""An open VFIO device: regions, configuration space, interrupts, DMA, reset.

    with open_device("0000:01:00.0") as device:
        device.enable_memory()
        with device.region(4).map() as mapping:
            ...  # mapping.host_address, mapping.view

Opening and closing reset the device if it can be reset (vfio_pci_core_enable, _disable).
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.fd import EventFd
from vmm.vfio.assignability import find_assignable
from vmm.vfio.backend import Backend, open_iommu
from vmm.vfio.config import COMMAND, COMMAND_MASTER, COMMAND_MEMORY, DeviceConfigSpace
from vmm.vfio.fd import VfioError
from vmm.vfio.host_paths import HOST, HostPaths
from vmm.vfio.ioctls import DeviceIoctl
from vmm.vfio.irq import IrqIndex, IrqInfo, Irqs
from vmm.vfio.region import VfioRegion
from vmm.vfio.region_info import CONFIG, RegionInfo, region_index

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.vfio.fd import VfioFd
    from vmm.vfio.function import HostFunction
    from vmm.vfio.iommu import Iommu
    from vmm.vfio.kvm_files import KvmFiles


MIGRATION: Final = {
    "STOP_COPY": lib.VFIO_MIGRATION_STOP_COPY,
    "P2P": lib.VFIO_MIGRATION_P2P,
    "PRE_COPY": lib.VFIO_MIGRATION_PRE_COPY,
}
"""VFIO_MIGRATION_*, of VFIO_DEVICE_FEATURE_MIGRATION (include/uapi/linux/vfio.h)."""


def open_device(  # noqa: PLR0913  (one argument each is what most callers give)
    bdf: str,
    *,
    iommu: Iommu | None = None,
    backend: Backend = Backend.AUTO,
    events: Events | None = None,
    kvm: KvmFiles | None = None,
    paths: HostPaths = HOST,
) -> VfioDevice:
    """Open the PCI device at *bdf*, which has a VFIO driver.

    Devices that share an *iommu* (`open_iommu`) do DMA in the same address space; without one
    the device gets its own, which is closed with it, and whose VM, if any, is *kvm*. Raises
    `UserError` or `HostError`.
    """
    function = find_assignable(bdf, paths)
    if iommu is not None:
        return VfioDevice(function, iommu)
    own = open_iommu(function, backend, events, kvm)
    try:
        return VfioDevice(function, own, owns_iommu=True)
    except BaseException:
        own.close()
        raise


class VfioDevice(Closeable):
    """One open device. `with` closes it, its mappings and its eventfds."""

    def __init__(self, function: HostFunction, iommu: Iommu, *, owns_iommu: bool = False) -> None:
        """Attach *function* to *iommu*. Raises `HostError`."""
        self.function = function
        self.bdf = function.bdf
        self.driver = function.driver or ""
        """The VFIO driver's name: how regions are mapped depends on the driver."""
        self.iommu = iommu
        self._owns_iommu = owns_iommu
        self._notices: dict[IrqIndex, EventFd] = {}
        self._fd: VfioFd | None = iommu.attach(function)
        try:
            self._describe(self._fd)
        except BaseException:
            iommu.detach(self._fd)
            raise

    def _describe(self, fd: VfioFd) -> None:
        info = fd.ioctl_struct(DeviceIoctl.VFIO_DEVICE_GET_INFO, "vfio_device_info")
        if not info.flags & lib.VFIO_DEVICE_FLAGS_PCI:
            raise HostError(f"{self.bdf}: VFIO says that it is no PCI device")
        self.resettable = bool(info.flags & lib.VFIO_DEVICE_FLAGS_RESET)
        """Whether `reset` works."""
        found = [_region_info(fd, index) for index in range(info.num_regions)]
        self.regions = tuple(
            VfioRegion(self.bdf, one, fd) for one in found if one is not None and one.size
        )
        """The regions it has, in order of index; BARs that it lacks are left out."""
        self.config = DeviceConfigSpace(self.region(CONFIG))
        self.irqs = Irqs(fd)

    def __str__(self) -> str:
        return self.bdf

    # --- regions ------------------------------------------------------------------------------

    def region(self, which: int | str) -> VfioRegion:
        """Return a region by its index, or by its name such as BAR4. Raises `UserError`."""
        index = which if isinstance(which, int) else region_index(which)
        for region in self.regions:
            if region.index == index:
                return region
        have = ", ".join(f"{region.index} ({region.info.name})" for region in self.regions)
        raise UserError(f"{self.bdf} has no region {which}", f"it has {have}")

    # --- memory and DMA -----------------------------------------------------------------------

    @property
    def memory_enabled(self) -> bool:
        """Whether its BARs answer: the Memory Space bit of the command register."""
        return bool(self.config.read(COMMAND, 2) & COMMAND_MEMORY)

    def enable_memory(self) -> None:
        """Make its BARs answer. While they do not, mapped accesses fault. Raises `HostError`."""
        self.config.set_command(COMMAND_MEMORY)
        if not self.memory_enabled:
            raise HostError(f"{self.bdf}: its memory cannot be switched on")

    def enable_dma(self) -> None:
        """Enable DMA (Bus Master), to what `dma_map` has mapped. Raises `VfioError`."""
        self.config.set_command(COMMAND_MASTER)

    def dma_map(self, iova: int, host_address: int, size: int, *, writable: bool = True) -> None:
        """Call `Iommu.dma_map`: for all devices of the address space."""
        self.iommu.dma_map(iova, host_address, size, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Call `Iommu.dma_unmap`."""
        self.iommu.dma_unmap(iova, size)

    def export(self, region: int, offset: int, size: int) -> int:
        """Return a dma-buf of a part of a BAR, for `Iommu.dma_map_file`; the caller closes it.

        Raises `VfioError`: before Linux 6.19, or without CONFIG_VFIO_PCI_DMABUF, there is none.
        """
        head = ffi.sizeof("struct vfio_device_feature")
        fixed = ffi.sizeof("struct vfio_device_feature_dma_buf")
        whole = ffi.new(
            "uint64_t[]", (head + fixed + ffi.sizeof("struct vfio_region_dma_range")) // 8
        )
        feature = ffi.cast("struct vfio_device_feature *", whole)
        feature.argsz = ffi.sizeof(whole)
        feature.flags = lib.VFIO_DEVICE_FEATURE_GET | lib.VFIO_DEVICE_FEATURE_DMA_BUF
        wanted = ffi.cast("struct vfio_device_feature_dma_buf *", feature.data)
        wanted.region_index, wanted.open_flags = region, os.O_RDWR | os.O_CLOEXEC
        wanted.nr_ranges = 1
        wanted.dma_ranges[0].offset, wanted.dma_ranges[0].length = offset, size
        return self._open_fd.ioctl(
            DeviceIoctl.VFIO_DEVICE_FEATURE,
            whole,
            feature="DMA_BUF",
            region=region,
            offset=offset,
            size=size,
        )

    # --- migration ----------------------------------------------------------------------------

    def migration(self) -> frozenset[str]:
        """Return what its driver can do to migrate it, VFIO_MIGRATION_*; nothing: it cannot.

        Raises `VfioError`.
        """
        whole = ffi.new("uint64_t[]", 2)
        feature = ffi.cast("struct vfio_device_feature *", whole)
        feature.argsz = ffi.sizeof(whole)
        feature.flags = lib.VFIO_DEVICE_FEATURE_GET | lib.VFIO_DEVICE_FEATURE_MIGRATION
        try:
            self._open_fd.ioctl(DeviceIoctl.VFIO_DEVICE_FEATURE, whole, feature="MIGRATION")
        except VfioError as error:
            if error.errno == errno.ENOTTY:
                return frozenset()
            raise
        flags = ffi.cast("struct vfio_device_feature_migration *", feature.data).flags
        return frozenset(name for name, bit in MIGRATION.items() if flags & bit)

    # --- the whole of it ----------------------------------------------------------------------

    def reset(self) -> None:
        """Reset it. Raises `HostError`.

        VFIO restores configuration space, so memory that was enabled stays enabled. Accesses to
        mapped memory wait meanwhile (vfio_pci_ioctl_reset).
        """
        if not self.resettable:
            raise HostError(
                f"{self.bdf} cannot be reset by itself (no FLR, no power state D3hot that resets)",
                "power-cycle the host if it misbehaves",
            )
        self._open_fd.ioctl(DeviceIoctl.VFIO_DEVICE_RESET)

    def irq(self, index: IrqIndex) -> IrqInfo:
        """Return how many interrupts of one kind it has. Raises `VfioError`."""
        return self.irqs.info(index)

    def notice(self, index: IrqIndex) -> int | None:
        """Return a non-blocking eventfd, which the device owns, that VFIO signals.

        ``IrqIndex.REQ``: the host wants the device back, and waits until it is closed.
        ``IrqIndex.ERR``: the device has failed. None if VFIO does not signal this.
        Raises `VfioError`.
        """
        if index in self._notices:
            return self._notices[index].fileno()
        if not self.irq(index).count:
            return None
        eventfd = EventFd()
        try:
            self.irqs.signal(index, [eventfd.fileno()])
        except BaseException:
            eventfd.close()
            raise
        self._notices[index] = eventfd
        return eventfd.fileno()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._fd is None

    @property
    def _open_fd(self) -> VfioFd:
        if self._fd is None:
            raise UserError(f"{self.bdf} is closed")
        return self._fd

    def close(self) -> None:
        """Unmap its regions and give it back. Idempotent.

        Memory slots made of its mappings must be gone.
        """
        fd, self._fd = self._fd, None
        if fd is None:
            return
        with ExitStack() as owned:  # each runs even if another raises; last first
            if self._owns_iommu:
                owned.callback(self.iommu.close)
            for notice in self._notices.values():
                owned.callback(notice.close)
            self._notices.clear()
            owned.callback(self.iommu.detach, fd)
            for region in self.regions:
                owned.callback(region.close)


def _region_info(fd: VfioFd, index: int) -> RegionInfo | None:
    try:
        return RegionInfo.ask(fd, index)
    except VfioError as error:
        if error.errno != errno.EINVAL:  # VGA, of a device that is not
            raise
        return None
