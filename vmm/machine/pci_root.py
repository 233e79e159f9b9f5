"""The machine's PCI root: the host bridge, the functions behind it, and their messages to the VM.

Functions last from reset to reset. `PciRoot.connect` joins them to each power cycle's VM before
it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.arm64 import layout, pcie
from vmm.closeable import Closeable
from vmm.kvm.irq_routing import IrqRouting
from vmm.pci.host import PciHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.bus import MmioBus
    from vmm.events import Events
    from vmm.fdt import Node
    from vmm.irq import InterruptLine
    from vmm.kvm.irq_routing import FunctionMsis
    from vmm.kvm.vm import Vm
    from vmm.machine.address_space import AddressSpace
    from vmm.passthrough.function import PassthroughFunction
    from vmm.pci.function import PciFunction


class PciRoot(Closeable):
    """Own the functions attached to it. *line* returns the line of a shared peripheral interrupt.

    `vm` is the current power cycle's VM, or None: BARs get memory slots and ioeventfds in it.
    """

    def __init__(self, bus: MmioBus, line: Callable[[int], InterruptLine], events: Events) -> None:
        self.vm: Vm | None = None
        self._numa_nodes: dict[int, int] = {}
        self.host = PciHost(bus, pcie.FIXED, lambda slot: line(pcie.spi(slot)), events)
        virtio = range(layout.SPI_VIRTIO, layout.SPI_VIRTIO + layout.VIRTIO_SLOTS)
        intx = range(layout.SPI_PCI, layout.SPI_PCI + layout.PCI_SLOTS)
        self.msis = IrqRouting([*virtio, *intx], layout.SPI_COUNT, events)
        bus.attach(layout.PCI_ECAM, layout.PCI_ECAM_SIZE, self.host)

    def attach(
        self, function: PciFunction, *msis: FunctionMsis, numa_node: int | None = None
    ) -> int:
        """Attach *function* to the next free slot, own it, and return the slot.

        *msis* deliver its messages. *numa_node* is that of the memory in its BARs which the guest
        uses as such. Raises `UserError` if all slots are taken; *function* is then still the
        caller's.
        """
        slot = self.host.attach(function)
        for each in msis:
            each.requester = slot << 3
        if numa_node is not None:
            self._numa_nodes[slot] = numa_node
        return slot

    def attach_devices(self, functions: Iterable[PassthroughFunction], space: AddressSpace) -> None:
        """Attach passed-through *functions*, and enter their BARs into the ledger of *space*."""
        for function in functions:
            node = space.register_bars(function.memories)
            self.attach(function, *function.deliveries, numa_node=node)

    def place(self, above: int, limit: int) -> int:
        """Place the window for 64-bit BARs; see `PciHost.place`."""
        return self.host.place(above, limit)

    def connect(self, vm: Vm, *, has_its: bool) -> None:
        """Connect functions to *vm*, which has its interrupt controller and does not run yet."""
        self.vm = vm
        self.msis.connect(vm, layout.GITS_TRANSLATER if has_its else None)

    def disconnect(self) -> None:
        """Forget the VM, whose vCPUs have stopped. Does nothing without one."""
        self.vm = None
        self.msis.disconnect()

    def nodes(self, *, has_its: bool) -> list[Node]:
        """Return the host bridge's device tree node."""
        slots = self.host.functions
        return [pcie.node(self.host.windows, slots, has_its=has_its, numa=self._numa_nodes)]

    def reset(self) -> None:
        """Reset all functions to power-on. No VM may have them."""
        self.host.reset()

    def close(self) -> None:
        """Close the functions. No VM may have them. Idempotent."""
        self.host.close()
