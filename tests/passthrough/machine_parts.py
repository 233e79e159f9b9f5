"""The surroundings of a passed-through function: bus, host bridge, and a VM that records calls."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tests.coherence.hosts import features
from tests.passthrough.fake_device import FakeDevice
from tests.recorded import Recorded
from vmm.arm64 import layout
from vmm.bus import MmioBus
from vmm.coherence.capability import FlagAnswer, HostCapability, judge
from vmm.config.vfio import VfioConfig
from vmm.kvm.slots import MemorySlots
from vmm.machine.pci_root import PciRoot
from vmm.passthrough.function import PassthroughFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm.irq import InterruptLine
    from vmm.kvm.system import System
    from vmm.kvm.vm import MsiRoute, PinRoute, Vm
    from vmm.passthrough.region_memory import RegionMemory
    from vmm.vfio.device import VfioDevice

END = 1 << 40
INTX = layout.SPI_PCI + 1


class FakeVm:
    """Records memory slots, routes and irqfds. Refuses slots that overlap, as KVM does."""

    def __init__(self, diary: list[Any], answers: Callable[[], bool]) -> None:
        self.diary = diary
        self.answers = answers
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.routes: list[MsiRoute | PinRoute] = []
        self.irqfds: dict[int, int] = {}
        self.levels: dict[int, int] = {}

    def check_extension(self, _capability: int) -> int:
        return 512

    def set_user_memory_region(
        self, slot: int, _flags: int, base: int, size: int, address: int
    ) -> None:
        if not size:
            self.diary.append(("slot gone", self.slots.pop(slot)[0]))
            return
        assert self.answers(), "a slot of memory that does not answer"
        for other, length, _ in self.slots.values():
            assert base >= other + length or other >= base + size, "slots overlap"
        self.slots[slot] = (base, size, address)
        self.diary.append(("slot", base, size))

    def set_gsi_routing(self, routes: Sequence[MsiRoute | PinRoute]) -> None:
        self.routes = list(routes)

    def irqfd(
        self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False
    ) -> None:
        if deassign:
            assert self.irqfds.pop(fd) == gsi
        elif resamplefd is not None:
            self.levels[gsi] = fd
        else:
            assert fd not in self.irqfds
            self.irqfds[fd] = gsi


class Parts:
    """A machine's PCI with one device behind it, and a VM that runs."""

    def __init__(self, config: VfioConfig | None = None, **device: bool) -> None:
        self.owned = ExitStack()
        self.events = Recorded()
        self.device = FakeDevice(self.owned, **device)
        self.diary = self.device.diary
        self.seen: list[tuple[str, int]] = []
        """What it is told of its memory, as a observer."""
        self.bus = MmioBus()
        self.vm = FakeVm(self.diary, lambda: self.device.config.answers)
        self.device.config.on_write = self._check_slots
        self.slots: MemorySlots | None = MemorySlots(cast("Vm", self.vm))
        self.root = PciRoot(self.bus, self._line, self.events)
        self.owned.callback(self.root.close)
        self.function = PassthroughFunction(
            config or VfioConfig(self.device.bdf),
            cast("VfioDevice", self.device),
            system=cast("System", None),
            capability=capability(),
            events=self.events,
            slots=lambda: self.slots,
            msis=self.root.msis,
            observer=self,
        )
        self.owned.callback(self.function.close)
        self.slot = self.root.attach(self.function, *self.function.deliveries)
        self.root.place(layout.RAM + (1 << 30), END)
        self.connect()

    def slots_added(self, memory: RegionMemory) -> None:
        self.seen.append(("shown", memory.config.region))

    def slots_removing(self, memory: RegionMemory) -> None:
        self.seen.append(("hiding", memory.config.region))

    def restart(self) -> None:
        """Give it a VM again, after a stop."""
        self.slots = MemorySlots(cast("Vm", self.vm))
        self.connect()

    def _check_slots(self) -> None:
        assert self.device.config.answers or not self.vm.slots, "memory off under a slot"

    @staticmethod
    def _line(_spi: int) -> InterruptLine:
        return cast("InterruptLine", SimpleNamespace(set_level=lambda _level: None))

    def connect(self) -> None:
        self.root.connect(cast("Vm", self.vm), has_its=True)
        self.function.connect(cast("Vm", self.vm), INTX)
        self.diary.clear()

    def read(self, offset: int, size: int = 4) -> int:
        address = layout.PCI_ECAM + (self.slot << 15) + offset
        return self.bus.read(address, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bus.write(layout.PCI_ECAM + (self.slot << 15) + offset, size, value)

    def told(self, *kinds: str) -> list[Any]:
        """Return what of these kinds has been noted, in order."""
        return [entry for entry in self.diary if entry[0] in kinds]

    def close(self) -> None:
        self.owned.close()


def capability(on_vm: int = 1) -> HostCapability:
    """Return a mainline kernel's, with FWB unless *on_vm* is 0."""
    no = FlagAnswer.UNSUPPORTED
    cpu = features(fwb=bool(on_vm))
    support, generation, evidence = judge(None, on_vm, no, cpu)
    flags: Mapping[str, Mapping[str, FlagAnswer]] = {
        "WRITE_BACK": {"KVM_SET_USER_MEMORY_REGION": no}
    }
    return HostCapability(support, generation, None, on_vm, 4096, 40, cpu, flags, evidence)
