"""One device of the host as a function of the guest's PCI host.

What of configuration space is whose, `vmm.passthrough.configuration` says; here is what follows
when the guest writes it:

    command, BARs    slots go before the device's memory does, and come after it
    power state      the same: in D3hot a device's memory does not answer
    MSI, MSI-X       the messages are KVM's, the device's own are VFIO's
    function reset   the device's, through VFIO, with everything of the guest's let go first
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.coherence.policy import Cache, Stage1, region_attribute
from vmm.config.bar import BarConfig
from vmm.errors import HostError, UserError, VmmError
from vmm.passthrough import bar as bars
from vmm.passthrough.configuration import PassthroughConfigSpace
from vmm.passthrough.interrupts import PassthroughInterrupts
from vmm.passthrough.msi import Msi
from vmm.passthrough.region_memory import RegionMemory
from vmm.passthrough.rom import RomBar, expansion_rom
from vmm.pci.bar import LEAST_IO, LEAST_MEMORY, Bar, Space
from vmm.pci.function import Identity, PciFunction
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
    from vmm.pci.host import PciHost
    from vmm.vfio.device import VfioDevice
    from vmm.vfio.region import VfioRegion

_POWER_STATE: int = lib.PCI_PM_CTRL_STATE_MASK


class PassthroughFunction(PciFunction):
    """*device* as the guest sees it. Closing it leaves the device to its owner.

    *slots* returns those of the VM that runs now. `host` is to be set when it is attached.
    Raises `HostError` or `UserError` for what cannot be.
    """

    def __init__(  # noqa: PLR0913  (what a device has to do with the host, one argument each)
        self,
        config: VfioConfig,
        device: VfioDevice,
        *,
        system: System,
        capability: HostCapability,
        events: Events,
        slots: Callable[[], MemorySlots | None],
        msis: IrqRouting,
        observer: bars.SlotObserver,
    ) -> None:
        self.device = device
        self.host: PciHost | None = None
        """The host bridge that it is behind."""
        self._dead = False
        """Whether it took not even its command register: then its memory is no better."""
        self.lost = False
        """Whether the host has taken the device back."""
        self.memories: list[RegionMemory] = []
        """Its regions that have memory slots."""
        self._choice = config
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
            read = device.config.read
            if read(lib.PCI_HEADER_TYPE, 1) & lib.PCI_HEADER_TYPE_MASK:
                raise UserError(
                    f"--vfio {device.bdf}: this is a bridge", "pass the devices behind it"
                )
            space = PassthroughConfigSpace(device.config, self._lost)
            self.deliveries: list[FunctionMsis] = []
            """Who sends its messages: for the root complex."""
            self.interrupts = self._owned.enter_context(
                PassthroughInterrupts(device, events, partial(self._deliver, msis))
            )
            table, pba = self._find_msix(space)
            found = self._regions(table, pba)
            self._check_cache()
            identity = Identity(
                read(lib.PCI_VENDOR_ID, 2),
                read(lib.PCI_DEVICE_ID, 2),
                read(lib.PCI_CLASS_REVISION, 4) >> 8,
                read(lib.PCI_CLASS_REVISION, 1),
                read(lib.PCI_SUBSYSTEM_VENDOR_ID, 2),
                read(lib.PCI_SUBSYSTEM_ID, 2),
            )
            pin = read(lib.PCI_INTERRUPT_PIN, 1) if device.irq(IrqIndex.INTX).count else 0
            super().__init__(device.bdf, identity, found, pin=min(pin, 1))
            self.config: PassthroughConfigSpace = space
            self._compose(identity, min(pin, 1))
            self.quiesce()
            if not device.resettable:
                self._say_not_resettable()
            undo.pop_all()

    # --- what it is made of -------------------------------------------------------------------

    def _find_msix(
        self, space: PassthroughConfigSpace
    ) -> tuple[tuple[int, AddressRange], tuple[int, AddressRange]]:
        """Make `_vectors`, if it has MSI-X; return the BARs and places of table and PBA."""
        at = space.capabilities.get(lib.PCI_CAP_ID_MSIX)
        self._vectors: Msix | None = None
        if at is None or not self.device.irq(IrqIndex.MSIX).count:
            return (-1, AddressRange(0, 0)), (-1, AddressRange(0, 0))
        read = self.device.config.read
        count = 1 + (read(at + lib.PCI_MSIX_FLAGS, 2) & lib.PCI_MSIX_FLAGS_QSIZE)
        self._vectors = Msix(count, self.interrupts.vectors(IrqIndex.MSIX))
        table, pba = read(at + lib.PCI_MSIX_TABLE, 4), read(at + lib.PCI_MSIX_PBA, 4)
        bir, offset = lib.PCI_MSIX_TABLE_BIR, lib.PCI_MSIX_TABLE_OFFSET
        return (
            (table & bir, AddressRange(table & offset, ENTRY * count)),
            (pba & bir, AddressRange(pba & offset, self._vectors.pba_size)),
        )

    def _regions(self, table: tuple[int, AddressRange], pba: tuple[int, AddressRange]) -> list[Bar]:
        found = []
        for region in self.device.regions:
            if region.index in bars.BARS:
                ours: dict[AddressRange, BusDevice] = {}
                if self._vectors is not None and region.index == table[0]:
                    ours[table[1]] = self._vectors.table
                if self._vectors is not None and region.index == pba[0]:
                    ours[pba[1]] = self._vectors.pba
                found.append(self._bar(region, ours))
        if choice := self._choice.rom:
            found.append(expansion_rom(self.device, choice))
        return found

    def _bar(self, region: VfioRegion, ours: Mapping[AddressRange, BusDevice]) -> Bar:
        space, prefetchable = bars.space(self.device, region.index)
        trap = TrappedRegion(region, 0, region.size, self._events)
        self._traps.append(trap)
        least = LEAST_IO if space is Space.IO else LEAST_MEMORY
        bar = Bar(
            region.index,
            max(least, bars.decoded_size(region)),
            bars.BarDevice(trap, region.size, ours),
            space=space,
            prefetchable=prefetchable,
        )
        if space is not Space.IO and any(area.end <= region.size for area in region.info.areas):
            memory = self._owned.enter_context(
                RegionMemory(
                    BarConfig(self.device.bdf, region.index, None, self._cache(region)),
                    self.device,
                    self._system,
                    self._capability,
                    holes=list(ours),
                    option="--vfio",
                    registers=True,
                )
            )
            self.memories.append(memory)
            shown = bars.BarSlots(memory, self._slots, self._observer)
            bar.on_map, bar.on_unmap = shown.on_map, shown.on_unmap
        return bar

    def _cache(self, region: VfioRegion) -> str:
        """Return what is asked of *region*: ``require`` is not about what is never cacheable."""
        stage1 = region_attribute(self.device.driver, region.index).stage1
        if self._choice.cache == Cache.REQUIRE.value and stage1 is Stage1.UNCACHED:
            return Cache.AUTO.value
        return self._choice.cache

    def _check_cache(self) -> None:
        """Raise `UserError` if ``require`` is about nothing."""
        if self._choice.cache == Cache.REQUIRE.value and not any(
            memory.attribute.stage1 is not Stage1.UNCACHED for memory in self.memories
        ):
            raise UserError(
                f"--vfio {self.device.bdf}: cache=require, but nothing of it is cacheable: its "
                f"driver is {self.device.driver}",
                "leave cache out",
            )

    def _compose(self, identity: Identity, pin: int) -> None:
        """Have our registers in configuration space, where the device has its own."""
        self._define_header(identity, pin)
        self._define_bars()
        for bar in self.bars:
            if isinstance(bar, RomBar):
                mask = bar.mask | int(lib.PCI_ROM_ADDRESS_ENABLE)
                self.config.define(bar.offset, bytes(4), mask.to_bytes(4, "little"))
        capabilities = self.config.capabilities
        if (at := capabilities.get(lib.PCI_CAP_ID_PM)) is not None:
            self._power_at = at
            kept = self.config.read(at + lib.PCI_PM_CTRL, 2) & lib.PCI_PM_CTRL_NO_SOFT_RESET
            self.config.define(
                at + lib.PCI_PM_CTRL, kept.to_bytes(2, "little"), bytes([_POWER_STATE])
            )
        at = capabilities.get(lib.PCI_CAP_ID_EXP)
        if at is not None and self.config.read(at + lib.PCI_EXP_DEVCAP, 4) & lib.PCI_EXP_DEVCAP_FLR:
            self._express_at = at
        if (at := capabilities.get(lib.PCI_CAP_ID_MSIX)) is not None:
            self._compose_msix(at)
        self._msi: Msi | None = None
        if (at := capabilities.get(lib.PCI_CAP_ID_MSI)) is not None:
            self._msi = Msi(self.config, at, self.interrupts.vectors(IrqIndex.MSI))

    def _compose_msix(self, at: int) -> None:
        size = int(lib.PCI_CAP_MSIX_SIZEOF) - 2
        value = self.config.read(at + 2, 2) & lib.PCI_MSIX_FLAGS_QSIZE
        places = b"".join(
            self.config.read(at + offset, 4).to_bytes(4, "little")
            for offset in (lib.PCI_MSIX_TABLE, lib.PCI_MSIX_PBA)
        )
        writable = lib.PCI_MSIX_FLAGS_ENABLE | lib.PCI_MSIX_FLAGS_MASKALL
        body = value.to_bytes(2, "little") + places
        assert len(body) == size
        if self._vectors is not None:
            self.config.define(at + 2, body, writable.to_bytes(2, "little"))
            self._msix_at, self.msix = at, self._vectors

    # --- what the guest writes ----------------------------------------------------------------

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Take 1, 2 or 4 aligned bytes, and have the device follow."""
        if self.lost:
            return
        before = self._wants()
        if self._express_at and self._asks_for_reset(offset, size, value):
            self.reset()  # and what else was written has no time to take effect
        else:
            super().write_config(offset, size, value)
        if self._msi is not None:
            self._msi.update()
        if before != (now := self._wants()):
            self._follow(before, now)
        self.interrupts.update_intx(
            messages=bool((self.msix and self.msix.enabled) or (self._msi and self._msi.enabled))
        )

    def read_config(self, offset: int, size: int) -> int:
        """Return 1, 2 or 4 aligned bytes; ones where the device has gone."""
        if self.lost:
            return (1 << 8 * size) - 1
        if self._msi is not None:
            self._msi.refresh()
        return super().read_config(offset, size)

    def _wants(self) -> tuple[int, int]:
        """Return what the guest has in the command register, and the power state."""
        power = self._power_at and self.config.read(self._power_at + lib.PCI_PM_CTRL, 2)
        return self.config.read(COMMAND, 2), power & _POWER_STATE

    def _follow(self, before: tuple[int, int], now: tuple[int, int]) -> None:
        """Have the device's command register and power state as the guest wants them.

        Its memory is off, or asleep, only while nothing of it is mapped: KVM could not resolve
        an access then, and the vCPU would end. Hence what is less is unmapped here; what is
        more the host bridge maps when the write is done.
        """
        if _answers(*before) and not _answers(*now):
            self._settle()
        command, power = now
        done = True
        if power != before[1]:
            done = self.config.write_device(self._power_at + lib.PCI_PM_CTRL, 2, power)
        self._dead = not (self.config.write_device(COMMAND, 2, command) and done)

    def decoded(self, bar: Bar) -> int | None:
        """Return the bus address where the guest has *bar* decoded; None: nowhere."""
        if self.lost or self._dead:
            return None
        if isinstance(bar, RomBar):
            enabled = self.config.read(lib.PCI_ROM_ADDRESS, 4) & lib.PCI_ROM_ADDRESS_ENABLE
            return super().decoded(bar) if enabled else None
        return super().decoded(bar)

    def _deliver(self, msis: IrqRouting) -> FunctionMsis:
        self.deliveries.append(msis.function(self.device.bdf))
        return self.deliveries[-1]

    def connect(self, vm: Vm, gsi: int) -> None:
        """Have *vm*, which is about to run, raise its interrupts; INTx is *gsi*."""
        self._connected = True
        self.quiesce()  # its memory may have been looked at
        self.interrupts.connect(vm, gsi)

    def disconnect(self) -> None:
        """Have the device be quiet, and as after a reset: the guest has stopped."""
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
        """Have the device do nothing: no DMA, no interrupts, no memory. But have it awake."""
        self.config.write_device(COMMAND, 2, 0)
        if self._power_at:
            self.config.write_device(self._power_at + lib.PCI_PM_CTRL, 2, 0)
            # Waking it, VFIO gives back the command register that it fell asleep with
            # (vfio_pci_set_power_state), and with it the leave to do DMA.
            self.config.write_device(COMMAND, 2, 0)

    def reset(self) -> None:
        """Be as after power-on. A guest that asks for it gets the device reset as well."""
        self.interrupts.silence()
        super().reset()
        self._settle()
        if self._msi is not None:
            self._msi.update()
        if self._connected:  # else `disconnect` has done it
            self.quiesce()
            self.reset_device()

    def reset_device(self) -> None:
        """Reset the device; what keeps it from being reset is an event, once."""
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
        """Give the device back to the host; the guest reads ones from now on."""
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
        """Have its BARs where `decoded` says, now."""
        if self.host is not None:
            self.host.settle(self)

    def _lost(self, error: VmmError) -> None:
        self._say("vfio-no-answer", str(error))

    def _say(self, event: str, because: str) -> None:
        """Emit an event, the first time only."""
        if event not in self._said:
            self._said.add(event)
            self._events.emit(event, device=self.device.bdf, because=because)

    def close(self) -> None:
        """Unmap its regions. Its BARs are nowhere by then. Idempotent."""
        self._owned.close()


def _answers(command: int, power: int) -> bool:
    """Tell whether a device's memory answers."""
    return bool(command & COMMAND_MEMORY) and not power
