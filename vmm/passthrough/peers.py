"""DMA from device to device: BARs within the other devices' reach, at the guest's addresses.

    BAR --VFIO_DEVICE_FEATURE_DMA_BUF--> dma-buf --IOMMU_IOAS_MAP_FILE--> I/O address space

Device memory cannot be pinned, so it is not for IOAS_MAP; a dma-buf of it iommufd maps as long as
the device's memory is on, and no longer. Where the kernel has no such thing (Linux 6.19), or with
the group interface, BARs are left out: DMA to them then ends in the IOMMU. An event says which.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.closeable import Closeable
from vmm.errors import VmmError

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.passthrough.region_memory import RegionMemory
    from vmm.vfio.iommu import Iommu


class Peers(Closeable):
    """Device memory in the address space *iommu*. Calls come one at a time. `with` closes it."""

    def __init__(self, iommu: Iommu, events: Events) -> None:
        self._iommu = iommu
        self._events = events
        self._fds: dict[tuple[RegionMemory, int, int], int] = {}
        """Dma-bufs of (memory, offset, size)."""
        self._mapped: dict[RegionMemory, list[tuple[int, int]]] = {}
        self._said: set[RegionMemory] = set()

    def add(self, memory: RegionMemory) -> None:
        """Let devices reach what of *memory* has slots. What cannot be is said, once."""
        there = self._mapped.setdefault(memory, [])
        try:
            for entry in memory.entries:
                if entry.slot is not None:
                    fd = self._export(memory, entry.base - memory.base, entry.size)
                    self._iommu.dma_map_file(entry.base, fd, entry.size)
                    there.append((entry.base, entry.size))
        except VmmError as error:
            self._say(memory, mapped=False, because=str(error))
        else:
            self._say(memory, mapped=True, because="iommufd has mapped a dma-buf of it")

    def remove(self, memory: RegionMemory) -> None:
        """Take *memory* out of their reach again, as far as it was in it."""
        for base, size in self._mapped.pop(memory, ()):
            try:
                self._iommu.dma_unmap(base, size)
            except VmmError as error:
                self._say(memory, mapped=True, because=str(error))

    def forget(self, memory: RegionMemory) -> None:
        """Close what is open of *memory*, whose device is about to go."""
        self.remove(memory)
        for key in list(self._fds):  # of it all at once: vCPUs may be adding others' meanwhile
            if key[0] is memory:
                os.close(self._fds.pop(key))

    def _export(self, memory: RegionMemory, offset: int, size: int) -> int:
        key = memory, offset, size
        if key not in self._fds:
            self._fds[key] = memory.device.export(memory.config.region, offset, size)
        return self._fds[key]

    def _say(self, memory: RegionMemory, *, mapped: bool, because: str) -> None:
        if memory not in self._said:
            self._said.add(memory)
            self._events.emit("vfio-peer", what=memory.name, mapped=mapped, because=because)

    def close(self) -> None:
        """Close the dma-bufs. Idempotent."""
        while self._fds:
            os.close(self._fds.popitem()[1])
