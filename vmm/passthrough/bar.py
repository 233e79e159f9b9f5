"""The regions of a device as BARs of its function in the guest.

    | mapped area | MSI-X table | PBA | mapped area | no area |
      memory slot   ours          ours  memory slot   VFIO read and write for each access

All of a BAR is on the bus by the device that answers what has no slot; slots go before it.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final, Protocol

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.pci.bar import Space

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.bus import BusDevice
    from vmm.kvm.slots import MemorySlots
    from vmm.passthrough.region_memory import RegionMemory
    from vmm.vfio.device import VfioDevice
    from vmm.vfio.region import VfioRegion

BARS: Final = range(lib.VFIO_PCI_BAR0_REGION_INDEX, lib.VFIO_PCI_BAR5_REGION_INDEX + 1)
"""Region indices that are BARs, and which."""


class BarDevice:
    """Answer the accesses to a BAR that no memory slot takes.

    *ours* has bus devices of ours by where they are in the BAR; elsewhere it is *device*, which
    has *size* bytes. Beyond, and across two of them, nobody answers.
    """

    def __init__(
        self, device: BusDevice, size: int, ours: Mapping[AddressRange, BusDevice]
    ) -> None:
        self._parts = (*ours.items(), (AddressRange(0, size), device))

    def read(self, offset: int, size: int) -> int:
        """Read as the guest does."""
        if (found := self._find(offset, size)) is None:
            return (1 << 8 * size) - 1
        area, device = found
        return device.read(offset - area.base, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write as the guest does."""
        if (found := self._find(offset, size)) is not None:
            area, device = found
            device.write(offset - area.base, size, value)

    def _find(self, offset: int, size: int) -> tuple[AddressRange, BusDevice] | None:
        for area, device in self._parts:
            if area.overlaps(AddressRange(offset, size)):
                return (area, device) if area.contains(offset, size) else None
        return None


class SlotObserver(Protocol):
    """Who is told where device memory is. With the host bridge's lock. May not raise."""

    def slots_added(self, memory: RegionMemory) -> None:
        """Hear that *memory* has slots now."""

    def slots_removing(self, memory: RegionMemory) -> None:
        """Hear that *memory* is about to lose its slots, if it has any."""


class BarSlots:
    """Device memory that is in the guest wherever the guest decodes its BAR.

    *slots* returns those of the VM that runs now, if one does; *observer* hears of it when it has
    come, and before it goes.
    """

    def __init__(
        self,
        memory: RegionMemory,
        slots: Callable[[], MemorySlots | None],
        observer: SlotObserver,
    ) -> None:
        self.memory = memory
        self._slots = slots
        self._observer = observer

    def on_map(self, base: int) -> None:
        """Give it slots at *base*. Raises `HostError`; all is trapped then."""
        if (slots := self._slots()) is not None and not base % mmap.PAGESIZE:
            self.memory.base = base
            self.memory.plug(slots)
            self._observer.slots_added(self.memory)

    def on_unmap(self) -> None:
        """Take them away."""
        self._observer.slots_removing(self.memory)
        self.memory.hide(self._slots(), "the guest does not decode its BAR")


def bar_kind(device: VfioDevice, index: int) -> tuple[Space, bool]:
    """Return what BAR *index* is, and whether it is prefetchable. Raises `VfioError`."""
    register = device.config.read(lib.PCI_BASE_ADDRESS_0 + 4 * index, 4)
    if register & lib.PCI_BASE_ADDRESS_SPACE_IO:
        return Space.IO, False
    wide = register & lib.PCI_BASE_ADDRESS_MEM_TYPE_MASK == lib.PCI_BASE_ADDRESS_MEM_TYPE_64
    kind = Space.MEMORY64 if wide else Space.MEMORY32
    return kind, bool(register & lib.PCI_BASE_ADDRESS_MEM_PREFETCH)


def decoded_size(region: VfioRegion) -> int:
    """Return how many bytes a BAR of *region* decodes: a power of two."""
    return 1 << (region.size - 1).bit_length()
