"""The regions of a device as BARs of its function in the guest.

    | mapped area | MSI-X table | PBA      | mapped area | no area |
      memory slot   emulated      emulated   memory slot   VFIO read and write for each access

A BAR as a whole is on the bus, as the device that answers accesses outside its memory slots.
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
"""The region indices of BARs; BAR 0's is 0."""


class BarDevice:
    """Answer the accesses to a BAR that go to no memory slot.

    *emulated* maps parts of the BAR to bus devices of the VMM; the rest of its *size* bytes is
    *device*. Accesses beyond, or to two of these at once, are not answered.
    """

    def __init__(
        self, device: BusDevice, size: int, emulated: Mapping[AddressRange, BusDevice]
    ) -> None:
        self._parts = (*emulated.items(), (AddressRange(0, size), device))

    def read(self, offset: int, size: int) -> int:
        """Return what the guest reads; ones if nobody answers."""
        if (found := self._find(offset, size)) is None:
            return (1 << 8 * size) - 1
        area, device = found
        return device.read(offset - area.base, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write for the guest."""
        if (found := self._find(offset, size)) is not None:
            area, device = found
            device.write(offset - area.base, size, value)

    def _find(self, offset: int, size: int) -> tuple[AddressRange, BusDevice] | None:
        access = AddressRange(offset, size)
        for area, device in self._parts:
            if area.overlaps(access):
                return (area, device) if area.contains(*access) else None
        return None


class SlotObserver(Protocol):
    """Hears where device memory has slots. Called with the host bridge's lock; may not raise."""

    def slots_added(self, memory: RegionMemory) -> None:
        """Note that *memory* has slots now."""

    def slots_removing(self, memory: RegionMemory) -> None:
        """Note that *memory* is about to lose its slots, if it has any."""


class BarSlots:
    """The memory slots of a BAR, which are where the guest decodes it: hooks of `pci.bar.Bar`.

    *slots* returns those of the running VM, or None. *observer* hears after slots are added, and
    before they are removed.
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
        """Add slots at *base*. Raises `HostError`; then all accesses are trapped."""
        if (slots := self._slots()) is not None and not base % mmap.PAGESIZE:
            self.memory.place(base)
            self.memory.plug(slots)
            self._observer.slots_added(self.memory)

    def on_unmap(self) -> None:
        """Remove the slots."""
        self._observer.slots_removing(self.memory)
        self.memory.hide(self._slots(), "the guest does not decode its BAR")


def bar_kind(device: VfioDevice, index: int) -> tuple[Space, bool]:
    """Return BAR *index*'s address space, and whether it is prefetchable. Raises `VfioError`."""
    register = device.config.read(lib.PCI_BASE_ADDRESS_0 + 4 * index, 4)
    if register & lib.PCI_BASE_ADDRESS_SPACE_IO:
        return Space.IO, False
    wide = register & lib.PCI_BASE_ADDRESS_MEM_TYPE_MASK == lib.PCI_BASE_ADDRESS_MEM_TYPE_64
    kind = Space.MEMORY64 if wide else Space.MEMORY32
    return kind, bool(register & lib.PCI_BASE_ADDRESS_MEM_PREFETCH)


def decoded_size(region: VfioRegion) -> int:
    """Return how many bytes a BAR with *region* behind it decodes: a power of two."""
    return 1 << (region.size - 1).bit_length()
