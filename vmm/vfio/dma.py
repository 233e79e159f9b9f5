"""Guest RAM for devices: mapped in their I/O address space at the guest's own addresses.

Nothing translates for the guest's drivers, so an I/O virtual address is a guest physical one.
The mappings pin RAM: device and guest see the same pages only as long as nobody gives the pages
back to the host meanwhile. Hence they live exactly as long as a VM's memory slots of RAM do, and
RAM is discarded in between.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm.closeable import Closeable
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.memory import Region
    from vmm.vfio.iommu import Iommu


class GuestDma(Closeable):
    """Own the DMA mappings of all of a guest's RAM. `with` unmaps them.

    Close it after the devices have stopped, and before the RAM is unmapped or discarded.
    """

    def __init__(self, iommu: Iommu, ram: Iterable[Region]) -> None:
        """Map it. Raises `HostError`: the limit on locked memory, or reserved addresses."""
        self.size = 0
        """Bytes mapped, and so locked."""
        regions = list(ram)
        _check(iommu, regions)
        iommu.check_limit(sum(region.size for region in regions))
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            for region in regions:
                iommu.dma_map(region.base, region.host_address, region.size)
                self._owned.callback(_unmap, iommu, region.base, region.size)
                self.size += region.size
            undo.pop_all()

    def close(self) -> None:
        """Unmap it. Idempotent."""
        self._owned.close()


def _unmap(iommu: Iommu, iova: int, size: int) -> None:
    if iommu.maps(iova):  # otherwise it went with the last device, which the host took back
        iommu.dma_unmap(iova, size)


def _check(iommu: Iommu, regions: Iterable[Region]) -> None:
    """Raise `HostError` for RAM at addresses that the IOMMU cannot map, or reserves."""
    ranges = iommu.iova_ranges()
    for region in regions:
        if not any(one.contains(region.base, region.size) for one in ranges):
            possible = ", ".join(map(str, ranges))
            raise HostError(
                f"guest RAM at [{region.base:#x}, {region.end:#x}) is not within what this host's "
                f"IOMMU can map for the guest's devices: {possible}",
                "use less --memory" if region.base < (1 << 32) else "",
            )
