"""A device of the host as a function of the guest's PCI host.

`vmm.passthrough.config_space` says which bits of configuration space are the device's and which
are the guest's. This module does what the guest's writes ask for:

    command, BARs    memory slots go before the device's memory is switched off, and come after
                     it is switched on
    power state      the same: a device in D3hot does not answer accesses to its memory
    MSI, MSI-X       KVM gets the guest's messages; VFIO keeps the device's own
    function reset   VFIO resets the device, after the guest's interrupts and slots have gone
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.coherence.policy import Cache
from vmm.config.bar import BarConfig
from vmm.errors import HostError, UserError, VmmError
from vmm.passthrough.bar import BARS, BarDevice, BarSlots, SlotObserver, bar_kind, decoded_size
from vmm.passthrough.config_space import PassthroughConfigSpace
from vmm.passthrough.interrupts import PassthroughInterrupts
from vmm.passthrough.msi import Msi
from vmm.passthrough.region_memory import RegionMemory
from vmm.passthrough.rom import RomBar, expansion_rom
from vmm.pci.bar import LEAST_IO, LEAST_MEMORY, Bar, Space
from vmm.pci.function import INTA, Identity, PciFunction
from vmm.pci.msix import ENTRY, Msix
from vmm.vfio.config import COMMAND, COMMAND_MEMORY
from vmm.vfio.irq import IrqIndex
from vmm.vfio.trap import TrappedRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.bus import BusDevice
    from vmm.coherence.capability import HostCapability
    from vmm.config.vfio import VfioConfig
    from vmm.events import Events
    from vmm.kvm.irq_routing import FunctionMsis, IrqRouting
    from vmm.kvm.slots import MemorySlots
    from vmm.kvm.system import System
    from vmm.kvm.vm import Vm
    from vmm.vfio.device import VfioDevice
    from vmm.vfio.region import VfioRegion

_POWER_STATE: int = lib.PCI_PM_CTRL_STATE_MASK


class PassthroughFunction(PciFunction):
    """*device* as the guest sees it. `close` leaves the device to its owner.

    *slots* returns the memory slots of the running VM, or None. *observer* hears of slots that
    come and go. Raises `HostError` or `UserError` if the device or an option cannot be used.
    """

    config: PassthroughConfigSpace

    def __init__(  # noqa: PLR0913  (what a device has to do with the host, one argument each)
        self,
        options: VfioConfig,
        device: VfioDevice,
        *,
        system: System,
        capability: HostCapability,
        events: Events,
        slots: Callable[[], MemorySlots | None],
        msis: IrqRouting,
        observer: SlotObserver,
    ) -> None:
        self.device = device
        self.lost = False
        """Whether the host has taken the device back."""
        self.memories: list[RegionMemory] = []
        """Its regions that have memory slots."""
        self._dead = False
        """Whether it failed even a write of its command register. Its memory is unmapped then."""
        self._options = options
        self._capability = capability
        self._system = system
        self._events = events
        self._slots = slots
        self._observer = observer
        self._owned = ExitStack()
        self._said: set[str] = set()
        self._traps: list[TrappedRegion] = []
        self._connected = False
        with ExitStack() as undo:
            undo.callback(self._owned.close)
            if device.config.read(lib.PCI_HEADER_TYPE, 1) & lib.PCI_HEADER_TYPE_MASK:
                raise UserError(
                    f"--vfio {device.bdf}: this is a bridge", "pass the devices behind it"
                )
            space = PassthroughConfigSpace(device.config, self._lost)
            senders = {index: msis.function(device.bdf) for index in (IrqIndex.MSI, IrqIndex.MSIX)}
            self.deliveries: tuple[FunctionMsis, ...] = tuple(senders.values())
            """The senders of its messages, for the root complex."""
            self.interrupts = self._owned.enter_context(
                PassthroughInterrupts(device, events, senders)
            )
            self._vectors = self._make_msix(space)
            bars = self._make_bars(space)
            self._check_cache()
            has_pin = device.irq(IrqIndex.INTX).count and device.config.read(
                lib.PCI_INTERRUPT_PIN, 1
            )
            pin = INTA if has_pin else 0
            super().__init__(device.bdf, _identity(device), bars, pin=pin, config=space)
            self._define_capabilities()
            self.quiesce()
            if not device.resettable:
                self._say_not_resettable()
            undo.pop_all()

    # --- what it is made of -------------------------------------------------------------------

    def _make_msix(self, space: PassthroughConfigSpace) -> Msix | None:
        """Return the guest's MSI-X state; None if the device has no MSI-X."""
        at = space.capabilities.get(lib.PCI_CAP_ID_MSIX)
        if at is None or not self.device.irq(IrqIndex.MSIX).count:
            return None
        count = 1 + (self.device.config.read(at + lib.PCI_MSIX_FLAGS, 2) & lib.PCI_MSIX_FLAGS_QSIZE)
        return Msix(count, self.interrupts.vectors(IrqIndex.MSIX))

    def _make_bars(self, space: PassthroughConfigSpace) -> list[Bar]:
        emulated: dict[int, dict[AddressRange, BusDevice]] = defaultdict(dict)
        if (msix := self._vectors) is not None:
            at = space.capabilities[lib.PCI_CAP_ID_MSIX]
            for register, size, emulation in (
                (lib.PCI_MSIX_TABLE, ENTRY * msix.vectors, msix.table),
                (lib.PCI_MSIX_PBA, msix.pba_size, msix.pba),
            ):
                value = self.device.config.read(at + register, 4)
                place = AddressRange(value & lib.PCI_MSIX_TABLE_OFFSET, size)
                emulated[value & lib.PCI_MSIX_TABLE_BIR][place] = emulation
        bars = [
            self._make_bar(region, emulated[region.index])
            for region in self.device.regions
            if region.index in BARS
        ]
        if choice := self._options.rom:
            bars.append(expansion_rom(self.device, choice))
        return bars

    def _make_bar(self, region: VfioRegion, emulated: Mapping[AddressRange, BusDevice]) -> Bar:
        kind, prefetchable = bar_kind(self.device, region.index)
        trap = TrappedRegion(region, 0, region.size, self._events)
        self._traps.append(trap)
        least = LEAST_IO if kind is Space.IO else LEAST_MEMORY
        bar = partial(
            Bar,
            region.index,
            max(least, decoded_size(region)),
            BarDevice(trap, region.size, emulated),
            space=kind,
            prefetchable=prefetchable,
        )
        if kind is Space.IO or not any(area.end <= region.size for area in region.info.areas):
            return bar()
        memory = self._owned.enter_context(
            RegionMemory(
                BarConfig(self.device.bdf, region.index, None, self._options.cache),
                self.device,
                self._system,
                self._capability,
                holes=list(emulated),
                whole=True,
            )
        )
        self.memories.append(memory)
        shown = BarSlots(memory, self._slots, self._observer)
        return bar(on_map=shown.on_map, on_unmap=shown.on_unmap)

    def _check_cache(self) -> None:
        """Raise `UserError` if ``cache=require`` applies to no region."""
        if self._options.cache == Cache.REQUIRE.value and not any(
            memory.can_be_cacheable for memory in self.memories
        ):
            raise UserError(
                f"--vfio {self.device.bdf}: cache=require, but nothing of it is cacheable: its "
                f"driver is {self.device.driver}",
                "leave cache out",
            )

    def _define_capabilities(self) -> None:
        """Define the registers of ROM and capabilities that are the guest's, not the device's."""
        for bar in self.bars:
            if isinstance(bar, RomBar):
                self.config.define_register(bar.offset, 4, 0, bar.mask | lib.PCI_ROM_ADDRESS_ENABLE)
        capabilities = self.config.capabilities
        if (at := capabilities.get(lib.PCI_CAP_ID_PM)) is not None:
            self._power_at = at
            kept = self.config.read(at + lib.PCI_PM_CTRL, 2) & lib.PCI_PM_CTRL_NO_SOFT_RESET
            self.config.define_register(at + lib.PCI_PM_CTRL, 2, kept, _POWER_STATE)
        at = capabilities.get(lib.PCI_CAP_ID_EXP)
        if at is not None and self.config.read(at + lib.PCI_EXP_DEVCAP, 4) & lib.PCI_EXP_DEVCAP_FLR:
            self._express_at = at
        if self._vectors is not None:
            self._define_msix(self._vectors, capabilities[lib.PCI_CAP_ID_MSIX])
        self._msi: Msi | None = None
        if (at := capabilities.get(lib.PCI_CAP_ID_MSI)) is not None:
            self._msi = Msi(self.config, at, self.interrupts.vectors(IrqIndex.MSI))

    def _define_msix(self, msix: Msix, at: int) -> None:
        read = self.config.read
        flags = read(at + lib.PCI_MSIX_FLAGS, 2) & lib.PCI_MSIX_FLAGS_QSIZE
        writable = lib.PCI_MSIX_FLAGS_ENABLE | lib.PCI_MSIX_FLAGS_MASKALL
        self.config.define_register(at + lib.PCI_MSIX_FLAGS, 2, flags, writable)
        for register in (at + lib.PCI_MSIX_TABLE, at + lib.PCI_MSIX_PBA):
            self.config.define_register(register, 4, read(register, 4))
        self._msix_at, self.msix = at, msix

    # --- what the guest writes ----------------------------------------------------------------

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 aligned bytes, and change the device accordingly."""
        if self.lost:
            return
        before = self._wanted_state()
        if self._express_at and self._asks_for_reset(offset, size, value):
            self.reset()  # and what else was written has no time to take effect
        else:
            super().write_config(offset, size, value)
        if self._msi is not None:
            self._msi.update()
        if before != (now := self._wanted_state()):
            self._change_state(before, now)
        self.interrupts.update_intx(
            messages=bool((self.msix and self.msix.enabled) or (self._msi and self._msi.enabled))
        )

    def read_config(self, offset: int, size: int) -> int:
        """Return 1, 2 or 4 aligned bytes; ones once the host has taken the device back."""
        if self.lost:
            return (1 << 8 * size) - 1
        if self._msi is not None:
            self._msi.refresh()
        return super().read_config(offset, size)

    def _wanted_state(self) -> tuple[int, int]:
        """Return the guest's command register and power state."""
        power = self._power_at and self.config.read(self._power_at + lib.PCI_PM_CTRL, 2)
        return self.config.read(COMMAND, 2), power & _POWER_STATE

    def _change_state(self, before: tuple[int, int], now: tuple[int, int]) -> None:
        """Write the guest's command register and power state to the device.

        The device's memory is off, or asleep, only while no slot maps it: KVM could not resolve
        an access to it, and KVM_RUN would fail. So what the guest hides is unmapped here, before
        the write; what it shows, the host bridge maps after it.
        """
        if _answers(*before) and not _answers(*now):
            self._settle()
        command, power = now
        done = True
        if power != before[1]:
            done = self.config.write_device(self._power_at + lib.PCI_PM_CTRL, 2, power)
        self._dead = not (self.config.write_device(COMMAND, 2, command) and done)

    def decoded(self, bar: Bar) -> int | None:
        """Return the bus address where the guest has *bar* decoded; None if it is not decoded."""
        if self.lost or self._dead:
            return None
        if isinstance(bar, RomBar):
            enabled = self.config.read(lib.PCI_ROM_ADDRESS, 4) & lib.PCI_ROM_ADDRESS_ENABLE
            return super().decoded(bar) if enabled else None
        return super().decoded(bar)

    # --- a power cycle ------------------------------------------------------------------------

    def connect(self, vm: Vm, gsi: int) -> None:
        """Deliver its interrupts to *vm*, which is about to run; INTx is interrupt *gsi*.

        Raises `KvmError`.
        """
        self._connected = True
        self.quiesce()  # `verify` may have switched its memory on
        self.interrupts.connect(vm, gsi)

    def disconnect(self) -> None:
        """Quiesce and reset the device: the guest has stopped."""
        if self._connected and not self.lost:
            self.interrupts.disconnect()
            for memory in self.memories:
                self._observer.slots_removing(memory)
                memory.hide(self._slots(), "the guest has stopped")
            self.quiesce()
            self.reset_device()
        self._connected = False

    # --- life ---------------------------------------------------------------------------------

    def quiesce(self) -> None:
        """Switch off DMA, interrupts and memory of the device, and wake it."""
        self.config.write_device(COMMAND, 2, 0)
        if self._power_at:
            self.config.write_device(self._power_at + lib.PCI_PM_CTRL, 2, 0)
            # On the way to D0, VFIO restores the command register that the device had when it
            # went to D3hot (vfio_pci_set_power_state), bus mastering included.
            self.config.write_device(COMMAND, 2, 0)

    def reset(self) -> None:
        """Go back to power-on state. If the guest runs, the device is reset as well."""
        self.interrupts.silence()
        super().reset()
        self._settle()
        if self._msi is not None:
            self._msi.update()
        if self._connected:  # otherwise `disconnect` has reset the device
            self.quiesce()
            self.reset_device()

    def reset_device(self) -> None:
        """Reset the device. Failure is an event, once."""
        if not self.device.resettable:
            self._say_not_resettable()
            return
        try:
            self.device.reset()
        except HostError as error:
            self._say("vfio-no-reset", str(error))

    def _say_not_resettable(self) -> None:
        self._say(
            "vfio-no-reset",
            "it has no reset of its own (FLR, or by power state): what a guest left in it stays",
        )

    def lose(self) -> None:
        """Give the device back to the host. The guest reads ones from now on."""
        with self.host.alone() if self.host is not None else nullcontext():
            self.interrupts.silence()
            self.lost = True
            self.config.detach()
            self._settle()
            for memory in self.memories:
                memory.unplug(None, "the host took the device back")
            for trap in self._traps:
                trap.detach()
            with self.interrupts.lock:  # a vCPU may be writing the MSI-X table, and asking VFIO
                self.device.close()

    def _settle(self) -> None:
        """Map and unmap its BARs as `decoded` says, now."""
        if self.host is not None:
            self.host.settle(self)

    def _lost(self, error: VmmError) -> None:
        self._say("vfio-no-answer", str(error))

    def _say(self, event: str, because: str) -> None:
        """Emit *event*, the first time only."""
        if event not in self._said:
            self._said.add(event)
            self._events.emit(event, device=self.device.bdf, because=because)

    def close(self) -> None:
        """Unmap its regions. The host bridge must have unmapped its BARs. Idempotent."""
        self._owned.close()


def _identity(device: VfioDevice) -> Identity:
    read = device.config.read
    kind = read(lib.PCI_CLASS_REVISION, 4)
    return Identity(
        read(lib.PCI_VENDOR_ID, 2),
        read(lib.PCI_DEVICE_ID, 2),
        kind >> 8,
        kind & 0xFF,
        read(lib.PCI_SUBSYSTEM_VENDOR_ID, 2),
        read(lib.PCI_SUBSYSTEM_ID, 2),
    )


def _answers(command: int, power: int) -> bool:
    """Tell whether a device answers accesses to its memory."""
    return bool(command & COMMAND_MEMORY) and not power
