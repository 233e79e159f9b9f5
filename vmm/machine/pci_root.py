"""The machine's PCI: the host bridge on its bus, messages to its VM, and functions behind it.

Functions last from reset to reset; each power cycle's VM is connected (`PciRoot.connect`)
before it runs, and forgotten when it has gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.arm64 import layout, pcie
from vmm.closeable import Closeable
from vmm.kvm.irq_routing import IrqRouting
from vmm.pci.host import PciHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.bus import MmioBus
    from vmm.events import Events
    from vmm.fdt import Node
    from vmm.irq import InterruptLine
    from vmm.kvm.irq_routing import FunctionMsis
    from vmm.kvm.vm import Vm
    from vmm.pci.function import PciFunction


class PciRoot(Closeable):
    """Owns the functions attached to it. *wire* gives the line of a shared peripheral interrupt.

    `vm` is the VM that runs now, if one does: for who has memory slots or ioeventfds in BARs.
    """

    def __init__(self, bus: MmioBus, wire: Callable[[int], InterruptLine], events: Events) -> None:
        self.vm: Vm | None = None
        self.host = PciHost(bus, pcie.FIXED, lambda slot: wire(pcie.spi(slot)), events)
        virtio = range(layout.SPI_VIRTIO, layout.SPI_VIRTIO + layout.VIRTIO_SLOTS)
        intx = range(layout.SPI_PCI, layout.SPI_PCI + layout.PCI_SLOTS)
        self.msis = IrqRouting([*virtio, *intx], layout.SPI_COUNT, events)
        bus.attach(layout.PCI_ECAM, layout.PCI_ECAM_SIZE, self.host)

    def attach(self, function: PciFunction, *msis: FunctionMsis) -> int:
        """Put *function*, whose messages *msis* deliver, into a slot, and own it; return the slot.

        Raises `UserError` if there is none; *function* is then not owned.
        """
        slot = self.host.attach(function)
        for each in msis:
            each.requester = slot << 3
        return slot

    def place(self, above: int, limit: int) -> int:
        """Give 64-bit BARs a window; see `PciHost.place`."""
        return self.host.place(above, limit)

    def connect(self, vm: Vm, *, has_its: bool) -> None:
        """Have functions use *vm*, which has its interrupt controller and does not run yet."""
        self.vm = vm
        self.msis.connect(vm, layout.GITS_TRANSLATER if has_its else None)

    def disconnect(self) -> None:
        """Forget the VM, which is gone. Harmless if there was none."""
        self.vm = None
        self.msis.disconnect()

    def nodes(self, *, has_its: bool) -> list[Node]:
        """Describe the host bridge for the device tree."""
        functions = self.host.functions
        numa = {
            slot: function.numa_node
            for slot, function in functions.items()
            if function.numa_node is not None
        }
        return [pcie.node(self.host.windows, functions, has_its=has_its, numa=numa)]

    def reset(self) -> None:
        """Put all functions back to power-on. No VM may have them."""
        self.host.reset()

    def close(self) -> None:
        """Close the functions. No VM may have them. Idempotent."""
        self.host.close()
