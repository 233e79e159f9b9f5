"""What a machine has at guest physical addresses where accesses exit, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.address_range import AddressRange
from vmm.arm64 import layout
from vmm.observe.names import Named, disjoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.machine.pci_root import PciRoot
    from vmm.machine.virtio_devices import VirtioDevices
    from vmm.pci.host import PciHost

CONFIGURATION: Final = 1 << 15
"""Bytes of configuration space of a device's eight functions (PCI Express 5.0, 7.2.2)."""


def named(virtio: VirtioDevices | None, root: PciRoot | None) -> list[Named]:
    """Return names of all that is not memory, as BARs are placed now; disjoint and ascending."""
    found = [Named(addresses, name) for name, addresses in layout.REGISTERS.items()]
    found.append(Named(AddressRange.to(layout.FLASH, layout.GIC_DISTRIBUTOR), "flash"))
    if virtio is not None and virtio.has_slots:
        for slot, device in enumerate(virtio.devices):
            found.append(Named(AddressRange(layout.virtio(slot), layout.VIRTIO_SIZE), device.name))
    if root is not None:
        found += _windows(root.host)
        found += _functions(root.host)
    return disjoint(found)


def _windows(host: PciHost) -> Iterator[Named]:
    """Yield the windows that the layout has no name for: that of 64-bit BARs, above all memory."""
    known = layout.REGISTERS.values()
    for window in host.windows:
        if not any(window.addresses.overlaps(addresses) for addresses in known):
            yield Named(window.addresses, f"PCI {window.space.value}")


def _functions(host: PciHost) -> Iterator[Named]:
    """Yield the configuration space and the mapped BARs of each function."""
    for slot, function in list(host.functions.items()):
        configuration = AddressRange(layout.PCI_ECAM + slot * CONFIGURATION, CONFIGURATION)
        yield Named(configuration, f"{function.name} configuration")
        for bar in function.bars:
            if bar.base is not None:
                yield Named(AddressRange(bar.base, bar.size), f"{function.name} BAR {bar.index}")
