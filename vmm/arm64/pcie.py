"""The PCI host bridge on this board: its windows, and its node for the device tree.

Source: devicetree bindings pci/host-generic-pci.yaml; IEEE 1275 PCI bus binding (ranges).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vmm.address_range import AddressRange
from vmm.arm64 import gic, layout
from vmm.fdt import Node, Value, reg, u32, u64
from vmm.pci.bar import Space
from vmm.pci.function import INTA
from vmm.pci.window import PciWindow, memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SPACE_CODE: Final = {Space.IO: 1 << 24, Space.MEMORY32: 2 << 24, Space.MEMORY64: 3 << 24}
"""phys.hi of a PCI address, for each space (IEEE 1275)."""

DEVICE_MASK: Final = 0xF800
"""The device number in phys.hi."""

REQUESTERS: Final = 0x1_0000

FIXED: Final = (
    PciWindow(Space.IO, AddressRange(layout.PCI_IO, layout.PCI_IO_SIZE), 0),
    memory(Space.MEMORY32, layout.PCI_MEMORY, layout.PCI_MEMORY_SIZE),
)
"""The windows that every host bridge here has."""


def spi(slot: int) -> int:
    """Return the shared peripheral interrupt of *slot*'s INTx.

    Each slot has its own: KVM keeps one level for an interrupt, not a count of who raised it.
    """
    return layout.SPI_PCI + slot


def node(
    windows: Sequence[PciWindow],
    slots: Iterable[int],
    *,
    has_its: bool,
    numa: Mapping[int, int] = MappingProxyType({}),
) -> Node:
    """Return the node of the host bridge with *windows* and devices in *slots*.

    *numa* maps slots of devices with coherent memory to their NUMA nodes.
    """
    ranges = (
        u32(SPACE_CODE[window.space]) + u64(window.bus_base, *window.addresses)
        for window in windows
    )
    interrupts = [
        u32(slot << 11, 0, 0, INTA, gic.PHANDLE, 0, 0) + gic.spi(spi(slot)) for slot in slots
    ]
    properties: dict[str, Value] = {
        "compatible": "pci-host-ecam-generic",
        "device_type": "pci",
        "reg": reg((layout.PCI_ECAM, layout.PCI_ECAM_SIZE)),
        "bus-range": u32(0, 0),
        "linux,pci-domain": 0,
        "#address-cells": 3,
        "#size-cells": 2,
        "ranges": b"".join(ranges),
        "dma-coherent": None,
    }
    if interrupts:
        properties["#interrupt-cells"] = 1
        properties["interrupt-map"] = b"".join(interrupts)
        properties["interrupt-map-mask"] = u32(DEVICE_MASK, 0, 0, 7)
    if has_its:
        properties["msi-map"] = u32(0, gic.ITS_PHANDLE, 0, REQUESTERS)
    devices = [
        Node(f"device@{slot:x},0", {"reg": u32(slot << 11, 0, 0, 0, 0), "numa-node-id": u32(near)})
        for slot, near in numa.items()
    ]
    return Node(f"pcie@{layout.PCI_ECAM:x}", properties, devices)
