"""Plug virtio devices into the board: into virtio-mmio slots, one device each, or into PCI.

Devices last from reset to reset. `VirtioDevices.connect` gives each power cycle's VM their
ioeventfds and irqfds.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from vmm._native import lib
from vmm.arm64 import board, layout
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.kvm.mmio_fastpath import InterruptAck, InterruptStatus
from vmm.typed_json import decode
from vmm.virtio.queue import MemoryMap
from vmm.virtio.rng import Rng
from vmm.virtio.transport.mmio import MmioTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.bus import MmioBus
    from vmm.config import MachineConfig
    from vmm.config.console import ConsoleConfig
    from vmm.config.disk import DiskConfig
    from vmm.config.net import NetConfig
    from vmm.config.share import ShareConfig
    from vmm.events import Events
    from vmm.fdt import Node
    from vmm.kvm.mmio_fastpath import Answer
    from vmm.kvm.vm import Vm
    from vmm.loop import Loop
    from vmm.machine.pci_root import PciRoot
    from vmm.memory import GuestMemory
    from vmm.virtio.balloon import Balloon
    from vmm.virtio.console.device import Console
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.pmem import Pmem
    from vmm.virtio.pmem_file import PmemFile
    from vmm.virtio.state import DeviceState, MmioState, PciState
    from vmm.virtio.transport.pci import PciTransport
    from vmm.virtio.vsock import Vsock


class MakeDevice(Protocol):
    """Whatever makes a virtio device: a kind of `VirtioDevice`, if its constructor fits."""

    def __call__(self, name: str, memory: MemoryMap, events: Events, /) -> VirtioDevice:
        """Return a device that events call *name*."""


NOT_ALLOCATED: Final = (
    "its file system cannot allocate it first: the machine ends if there is no room for a page"
)


def _disk(  # noqa: PLR0913  (what a disk has)
    name: str,
    config: DiskConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object],
    *,
    locked: bool,
) -> VirtioDevice:
    from vmm.virtio.block.open import open_disk

    return open_disk(name, config, memory, events, say, locked=locked)


def _net(
    name: str,
    config: NetConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object],
) -> VirtioDevice:
    from vmm.virtio.net.open import open_net

    return open_net(name, config, memory, events, say)


def _share(
    name: str,
    config: ShareConfig,
    memory: MemoryMap,
    events: Events,
    say: Callable[[str], object],
) -> VirtioDevice:
    from vmm.virtio.fs.open import open_share

    return open_share(name, config, memory, events, say)


def _vsock(cid: int, memory: MemoryMap, events: Events) -> Vsock:
    from vmm.virtio.vsock import Vsock, VsockBackend

    return Vsock("vsock", memory, events, cid, VsockBackend(cid))


def _pmem(name: str, file: PmemFile, memory: MemoryMap, events: Events) -> Pmem:
    from vmm.virtio.pmem import Pmem

    return Pmem(name, memory, events, file)


def _typed(device: VirtioDevice, state: DeviceState) -> DeviceState:
    """Return *state* with its own part, which is JSON values so far, as *device*'s kind has it."""
    if device.OwnState is None:
        return state
    return replace(state, own=decode(device.OwnState, state.own, f"{device.name}: own"))


class VirtioDevices(Closeable):
    """Own the virtio devices of *config*. Use as a context manager.

    Construct, reset and close it in the thread of *loop*, which serves the devices' queues.
    *memory* must outlive it. With ``--transport pci`` the devices are functions that *root* owns,
    resets and closes, after this is closed.
    *others* make devices that *config* has not. Raises `UserError` and `HostError`.
    """

    def __init__(  # noqa: C901, PLR0913  (what devices need of a machine; one kind a line)
        self,
        config: MachineConfig,
        memory: GuestMemory,
        bus: MmioBus,
        loop: Loop,
        events: Events,
        *,
        root: PciRoot | None = None,
        pmems: Sequence[PmemFile] = (),
        others: Sequence[MakeDevice] = (),
    ) -> None:
        self._bus = bus
        self._loop = loop
        self._root = root if config.transport == "pci" else None
        self._devices: list[VirtioDevice] = []
        self._transports: list[MmioTransport] = []
        self._functions: list[PciTransport] = []
        self._owned = ExitStack()
        self.console: Console | None = None
        """The console device."""
        self.balloon: Balloon | None = None
        self.notices: list[str] = []
        """Lines for the user: names that were chosen, features that are off."""
        known = MemoryMap(memory)
        with ExitStack() as undo:
            undo.callback(self.close)
            for number, disk in enumerate(config.disks):
                say, locked = self.notices.append, config.incoming is None
                self._plug(_disk(f"disk{number}", disk, known, events, say, locked=locked))
            for number, file in enumerate(pmems):
                if not file.allocated:
                    self.notices.append(f"{file.option}: {NOT_ALLOCATED}")
                self._plug(_pmem(f"pmem{number}", file, known, events))
            if config.consoles:
                self._plug(self._console(config.consoles, known, events))
            if config.balloon is not None:
                self._plug(self._balloon(config, known, events))
            if config.rng:
                self._plug(Rng("rng", known, events))
            for number, net in enumerate(config.nets):
                self._plug(_net(f"net{number}", net, known, events, self.notices.append))
            for number, share in enumerate(config.shares):
                self._plug(_share(f"share{number}", share, known, events, self.notices.append))
            if config.vsock is not None:
                self._plug(_vsock(config.vsock, known, events))
            for number, make in enumerate(others):
                self._plug(make(f"device{number}", known, events))
            undo.pop_all()

    def _console(
        self, configs: Sequence[ConsoleConfig], memory: MemoryMap, events: Events
    ) -> Console:
        from vmm.virtio.console.open import open_console

        say = self.notices.append
        self.console = open_console("console", configs, memory, events, self._loop, say)
        return self.console

    def _balloon(self, config: MachineConfig, memory: MemoryMap, events: Events) -> Balloon:
        from vmm.virtio.balloon import Balloon

        pinned = bool(config.vfio)
        if pinned:
            self.notices.append("the balloon gives nothing back: --vfio pins the guest's memory")
        size = config.balloon or 0
        self.balloon = Balloon("balloon", memory, events, size=size, pinned=pinned)
        return self.balloon

    def _plug(self, device: VirtioDevice) -> None:
        self._devices.append(device)
        if self._root is not None:
            readers = self._plug_into_pci(device, self._root)
        else:
            self._plug_into_slot(device)
            readers = device.readers()
        for fd, on_readable in readers:
            self._loop.add_reader(fd, on_readable)
            self._owned.callback(self._loop.remove_reader, fd)

    def _plug_into_pci(
        self, device: VirtioDevice, root: PciRoot
    ) -> Sequence[tuple[int, Callable[[], object]]]:
        """Make *device* a PCI function; return descriptors for the loop, with their callbacks."""
        from vmm.machine.bar_ioeventfd import BarIoeventfds
        from vmm.virtio.transport.pci import PciTransport

        msis = root.msis.function(device.name)
        with ExitStack() as undo:
            transport = undo.enter_context(PciTransport(device, msis))
            root.attach(transport, msis)
            undo.pop_all()
        self._functions.append(transport)
        ioeventfds = BarIoeventfds(transport.ioeventfds(), lambda: root.vm)
        for bar in transport.bars:
            bar.on_map, bar.on_unmap = ioeventfds.on_map, ioeventfds.on_unmap
        return transport.readers()

    def _plug_into_slot(self, device: VirtioDevice) -> None:
        slot = len(self._transports)
        transport = self._owned.enter_context(MmioTransport(device))
        if slot == layout.VIRTIO_SLOTS:
            raise UserError(
                f"{device.name}: there are no more than {slot} virtio devices", "leave some out"
            )
        self._transports.append(transport)
        self._bus.attach(layout.virtio(slot), layout.VIRTIO_SIZE, transport)

    def connect(self, vm: Vm) -> None:
        """Register ioeventfds and irqfds in *vm*, which has its GIC. Raises `KvmError`."""
        for slot, transport in enumerate(self._transports):
            for offset, width, fd, datamatch in transport.ioeventfds():
                vm.ioeventfd(layout.virtio(slot) + offset, width, fd, datamatch=datamatch)
            # KVM routes interrupt n to SPI n until told otherwise.
            vm.irqfd(transport.interrupt.fileno(), layout.SPI_VIRTIO + slot)

    def answers(self) -> list[Answer]:
        """Return the registers that the run loop answers in C: each slot's interrupt status."""
        found: list[Answer] = []
        for slot, transport in enumerate(self._transports):
            base, interrupt = layout.virtio(slot), transport.interrupt.c
            found.append(InterruptStatus(base + lib.VIRTIO_MMIO_INTERRUPT_STATUS, interrupt))
            found.append(InterruptAck(base + lib.VIRTIO_MMIO_INTERRUPT_ACK, interrupt))
        return found

    def nodes(self) -> list[Node]:
        """Return the slots' device tree nodes."""
        return board.virtio_mmio(len(self._transports))

    @property
    def has_slots(self) -> bool:
        """Whether the devices are in virtio-mmio slots, in their order, and not PCI functions."""
        return self._root is None

    @property
    def devices(self) -> Sequence[VirtioDevice]:
        """The devices, in the order of their slots or functions."""
        return self._devices

    def state(self) -> tuple[tuple[MmioState, ...], tuple[PciState, ...]]:
        """Return the states of the devices, which are paused, by transport. Raises `HostError`."""
        return (
            tuple(each.state() for each in self._transports),
            tuple(each.state() for each in self._functions),
        )

    def restore(self, mmio: Sequence[MmioState], pci: Sequence[PciState]) -> None:
        """Give all devices the states that `state` returned; `resume` lets them go on.

        The VM's interrupt controller has its state, and guest memory is whole. Raises `HostError`,
        and `UserError` for a device's own state that is not as its kind has it.
        """
        if (len(mmio), len(pci)) != (len(self._transports), len(self._functions)):
            raise HostError("the saved machine has other virtio devices")
        for transport, state in zip(self._transports, mmio, strict=True):
            transport.restore(replace(state, device=_typed(transport.device, state.device)))
        for function, saved in zip(self._functions, pci, strict=True):
            function.restore(replace(saved, device=_typed(function.device, saved.device)))

    def resume(self) -> None:
        """Let all devices go on after `restore`: from now on they use memory and what is behind."""
        for device in self._devices:
            device.resume()

    def cancel_waits(self) -> None:
        """End vCPUs' waits for daemons, so that they can stop. Does not block."""
        for device in self._devices:
            device.cancel_waits()

    def reset(self) -> None:
        """Reset all devices to power-on. When this returns, none accesses guest memory."""
        for transport in self._transports:
            transport.reset()

    def close(self) -> None:
        """Close the devices. No VM may be connected to them. Idempotent."""
        self._owned.close()
