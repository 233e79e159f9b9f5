"""DMA from device to device: BARs mapped for the other devices, at the guest's addresses.

    BAR --VFIO_DEVICE_FEATURE_DMA_BUF--> dma-buf --IOMMU_IOAS_MAP_FILE--> I/O address space

Device memory cannot be pinned, so IOAS_MAP does not take it. iommufd maps a dma-buf of it while the
device's memory is on. Before Linux 6.19, or with the group interface, BARs are not mapped, and DMA
to them ends in the IOMMU. An event says which.
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
    """Own the dma-bufs that are mapped in *iommu*. Calls come one at a time."""

    def __init__(self, iommu: Iommu, events: Events) -> None:
        self._iommu = iommu
        self._events = events
        self._fds: dict[tuple[RegionMemory, int, int], int] = {}
        """Dma-bufs of (memory, offset, size)."""
        self._mapped: dict[RegionMemory, list[tuple[int, int]]] = {}
        self._said: set[RegionMemory] = set()

    def add(self, memory: RegionMemory) -> None:
        """Map the parts of *memory* that have slots. The result is an event, once."""
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
        """Unmap what `add` has mapped of *memory*."""
        for base, size in self._mapped.pop(memory, ()):
            try:
                self._iommu.dma_unmap(base, size)
            except VmmError as error:
                self._say(memory, mapped=True, because=str(error))

    def forget(self, memory: RegionMemory) -> None:
        """Unmap *memory*, and close its dma-bufs: its device is about to be closed."""
        self.remove(memory)
        for key in list(self._fds):  # a copy: vCPUs may add others' meanwhile
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
