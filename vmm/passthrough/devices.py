"""All devices that are passed through: open, connect to a VM, reset and give back.

    open         bind (if asked), open one I/O address space for all, the devices, their functions
    connect      a VM is about to run: map all RAM for DMA, route interrupts into KVM
    disconnect   its vCPUs have stopped: quiesce and reset the devices, then unmap DMA
    close        close the devices (which resets them again) and the address space, unbind

RAM is discarded between power cycles. No device can reach it then, so device and guest never have
different pages at one address.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from vmm import broker
from vmm.arm64 import pcie
from vmm.closeable import Closeable
from vmm.coherence import dump
from vmm.events import Bounded
from vmm.fd import drain
from vmm.passthrough.function import PassthroughFunction
from vmm.passthrough.peers import Peers
from vmm.vfio.assignability import find_assignable
from vmm.vfio.backend import Backend, open_iommu
from vmm.vfio.binding import borrowed
from vmm.vfio.device import VfioDevice
from vmm.vfio.dma import GuestDma
from vmm.vfio.irq import IrqIndex
from vmm.vfio.kvm_files import KvmFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm.broker import Broker
    from vmm.coherence.capability import HostCapability
    from vmm.config.vfio import VfioConfig
    from vmm.events import Events
    from vmm.kvm.irq_routing import IrqRouting
    from vmm.kvm.slots import MemorySlots
    from vmm.kvm.system import System
    from vmm.kvm.vm import Vm
    from vmm.loop import Loop
    from vmm.memory import Region
    from vmm.passthrough.region_memory import RegionMemory
    from vmm.vfio.iommu import Iommu

LOOKS: Final = 8
"""How often a power cycle dumps stage 2 for a region: a dump is slow."""

UNKNOWN: Final = "unknown: this kernel has no dump (CONFIG_PTDUMP_STAGE2_DEBUGFS)"


class DeviceErrors:
    """Uncorrectable errors of the device at *bdf*, as events."""

    def __init__(self, bdf: str, events: Events) -> None:
        self._bdf = bdf
        self._events = Bounded(events)  # its guest can cause them

    def tell(self, fd: int) -> None:
        """Emit an event for eventfd *fd*, which VFIO signalled, and reset it."""
        drain(fd)
        self._events.emit(
            "vfio-device-error",
            device=self._bdf,
            because="the device has reported an uncorrectable error (PCIe AER)",
        )


class Passthrough(Closeable):
    """Own the devices that *configs* name. `with` closes them, before RAM is unmapped.

    `functions` are to be attached to a PCI host. Raises `UserError` or `HostError`.
    """

    def __init__(
        self,
        configs: Sequence[VfioConfig],
        *,
        system: System,
        capability: HostCapability,
        msis: IrqRouting,
        events: Events,
    ) -> None:
        self._events = events
        self._slots: MemorySlots | None = None
        self._vm: Vm | None = None
        self._cycle = ExitStack()
        self._owned = ExitStack()
        self._looks: dict[RegionMemory, int] = {}
        self._peers: Peers | None = None
        self._no_dump = False
        self._broker: Broker | None = None
        self._dumps = 0
        self.functions: list[PassthroughFunction] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for config in configs:
                if config.bind:
                    self._owned.enter_context(borrowed(config.bdf))
            assigned = [find_assignable(config.bdf) for config in configs]
            backend = Backend(configs[0].backend)
            self._iommu: Iommu = self._owned.enter_context(open_iommu(assigned[0], backend, events))
            if len(configs) > 1:
                self._peers = self._owned.enter_context(Peers(self._iommu, events))
            for config, host_function in zip(configs, assigned, strict=True):
                device = self._owned.enter_context(VfioDevice(host_function, self._iommu))
                self.functions.append(
                    PassthroughFunction(
                        config,
                        device,
                        system=system,
                        capability=capability,
                        events=events,
                        slots=lambda: self._slots,
                        msis=msis,
                        observer=self,
                    )
                )
                self._owned.callback(self.functions[-1].close)
                self._describe(self.functions[-1])
            undo.pop_all()

    def _describe(self, function: PassthroughFunction) -> None:
        device = function.device
        self._events.emit(
            "vfio-device",
            device=device.bdf,
            driver=device.driver,
            backend=self._iommu.name,
            resettable=device.resettable,
            mapped=[memory.config.region for memory in function.memories],
            interrupts={index.name: device.irq(index).count for index in IrqIndex},
        )

    @property
    def memories(self) -> Iterable[RegionMemory]:
        """All regions that can have memory slots."""
        return (memory for function in self.functions for memory in function.memories)

    def watch(self, loop: Loop, on_removal: Callable[[str], None]) -> None:
        """Give devices back when the host requests them, and report errors; the guest goes on.

        *on_removal* gets the address of a device that was given back.
        """
        self._broker = broker.current()
        self._dumps = self._broker.offer("stage2")
        for function in self.functions:
            for index, action in (
                (IrqIndex.REQ, partial(self._give_back, function, loop, on_removal)),
                (IrqIndex.ERR, DeviceErrors(function.device.bdf, self._events).tell),
            ):
                if (fd := function.device.notice(index)) is not None:
                    loop.add_reader(fd, partial(action, fd))
                    self._owned.callback(loop.remove_reader, fd)

    def _give_back(
        self,
        function: PassthroughFunction,
        loop: Loop,
        on_removal: Callable[[str], None],
        fd: int,
    ) -> None:
        loop.remove_reader(fd)
        if (other := function.device.notice(IrqIndex.ERR)) is not None:
            loop.remove_reader(other)
        function.lose()
        if (peers := self._peers) is not None:
            for memory in function.memories:
                peers.forget(memory)
        on_removal(function.device.bdf)

    # --- power cycles -------------------------------------------------------------------------

    def connect(self, vm: Vm, slots: MemorySlots, ram: Iterable[Region]) -> None:
        """Connect the devices to *vm*, which is about to run, and its *ram* to them.

        Raises `HostError`: KVM refuses, or the limit on locked memory is too low.
        """
        if all(function.lost for function in self.functions):
            return
        with ExitStack() as cycle:
            self._vm, self._slots = vm, slots
            cycle.callback(self._forget)
            files = cycle.enter_context(KvmFiles(vm))
            self._iommu.connect(files)
            cycle.callback(self._iommu.connect, None)
            dma = cycle.enter_context(GuestDma(self._iommu, ram))
            self._events.emit("vfio-dma", backend=self._iommu.name, bytes=dma.size)
            for function in self.functions:
                cycle.callback(function.disconnect)
                if not function.lost:
                    function.connect(vm, pcie.spi(function.slot or 0))
            self._cycle = cycle.pop_all()

    def plug(self, slots: MemorySlots) -> None:
        """Give BARs *slots* while they are decoded, in a VM that never runs: no DMA, interrupts."""
        self._slots = slots
        self._cycle.callback(self._forget)
        for function in self.functions:
            self._cycle.callback(function.reset)

    def disconnect(self) -> None:
        """Quiesce and reset the devices, then unmap DMA. The vCPUs have stopped. Idempotent."""
        for memory in self.memories:
            self._look(memory, last=True)
        self._cycle.close()
        self._looks.clear()

    def _forget(self) -> None:
        self._vm = self._slots = None

    # --- what the guest maps and unmaps (`SlotObserver`) ----------------------------------------

    def slots_added(self, memory: RegionMemory) -> None:
        """Map *memory* for the other devices."""
        if self._peers is not None:
            self._peers.add(memory)

    def slots_removing(self, memory: RegionMemory) -> None:
        """Unmap *memory* for the other devices; report how stage 2 maps it."""
        self._look(memory)
        if self._peers is not None:
            self._peers.remove(memory)

    def _open_dump(self, vm: Vm) -> int:
        """Open the dump of *vm*'s stage 2, by the broker. Raises OSError."""
        if self._broker is None:
            return dump.open_file(vm)
        _, (fd,) = self._broker.do(self._dumps, "open", vm.fileno())
        return fd

    def _look(self, memory: RegionMemory, *, last: bool = False) -> None:
        """Emit, once a power cycle, which block sizes stage 2 uses for *memory*.

        Stage 2 has what faults have mapped so far, so this looks each time the guest unmaps it,
        until something is found, `LOOKS` times at most; and at the end.
        """
        looks = self._looks.get(memory, 0)
        entries = [entry for entry in memory.entries if entry.slot is not None]
        if self._vm is None or looks >= LOOKS or not entries or self._no_dump:
            return
        self._looks[memory] = looks + 1
        spans = dump.read(self._vm, self._open_dump)
        if spans is None:
            self._no_dump = True
            self._events.emit("stage2-blocks", what="all", mapped=UNKNOWN)
            return
        for entry in entries:
            found = dump.blocks(spans, entry.addresses)
            if not (found or last):
                continue
            self._looks[memory] = LOOKS
            self._events.emit(
                "stage2-blocks",
                what=entry.name,
                base=entry.base,
                size=entry.size,
                mapped={str(size): found[size] for size in found},
            )

    def close(self) -> None:
        """Give the devices back. No VM may have them. Idempotent."""
        self._cycle.close()
        self._owned.close()
