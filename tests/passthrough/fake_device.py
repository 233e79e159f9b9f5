"""A device as VFIO shows one, without any: config space in a bytearray, regions in a memfd.

It keeps a diary of what it is told, in order, so that tests can see what comes before what.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.vfio.config import COMMAND, COMMAND_MEMORY
from vmm.vfio.fd import VfioError, VfioFd
from vmm.vfio.irq import IrqIndex, IrqInfo
from vmm.vfio.region import VfioRegion
from vmm.vfio.region_info import RegionInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BDF = "0000:01:00.0"
BAR0, BAR0_SIZE = 0, 0x4000
BAR2, BAR2_SIZE = 2, 8 << 20
IO_BAR, IO_SIZE = 4, 32
TABLE, PBA, VECTORS = 0x2000, 0x3000, 5
PM, MSI, EXPRESS, MSIX, ENHANCED = 0x40, 0x50, 0x70, 0xB0, 0xC0
SRIOV, SERIAL, ATS = 0x100, 0x140, 0x150
STRIDE = 1 << 40
"""Where in the device's file the next region starts."""


class FakeConfig:
    """Configuration space that accepts every write, as no device does, and records it."""

    def __init__(self, diary: list[Any]) -> None:
        self.size = 4096
        self.bytes = bytearray(4096)
        self.diary = diary
        self.gone = False
        self.kept = 0
        """The command register that it fell asleep with."""
        self.on_write: Callable[[], None] = lambda: None
        put = self.put
        put(0x00, 4, 0x5678_1234)
        put(lib.PCI_STATUS, 2, lib.PCI_STATUS_CAP_LIST)
        put(lib.PCI_CLASS_REVISION, 4, 0x010802_03)
        put(lib.PCI_HEADER_TYPE, 1, 0x80)
        put(lib.PCI_BASE_ADDRESS_0, 4, lib.PCI_BASE_ADDRESS_MEM_TYPE_64)
        prefetch = lib.PCI_BASE_ADDRESS_MEM_TYPE_64 | lib.PCI_BASE_ADDRESS_MEM_PREFETCH
        put(lib.PCI_BASE_ADDRESS_0 + 8, 4, prefetch)
        put(lib.PCI_BASE_ADDRESS_0 + 16, 4, lib.PCI_BASE_ADDRESS_SPACE_IO)
        put(lib.PCI_ROM_ADDRESS, 4, 0xFFFF_0001)
        put(lib.PCI_CAPABILITY_LIST, 1, PM)
        put(lib.PCI_INTERRUPT_PIN, 1, 2)
        put(PM, 2, lib.PCI_CAP_ID_PM | ENHANCED << 8)
        put(ENHANCED, 2, lib.PCI_CAP_ID_EA | MSI << 8)
        put(MSI, 2, lib.PCI_CAP_ID_MSI | EXPRESS << 8)
        flags = lib.PCI_MSI_FLAGS_64BIT | lib.PCI_MSI_FLAGS_MASKBIT | 2 << 1
        put(MSI + lib.PCI_MSI_FLAGS, 2, flags)
        put(EXPRESS, 2, lib.PCI_CAP_ID_EXP | MSIX << 8)
        put(EXPRESS + lib.PCI_EXP_FLAGS, 2, 2)
        put(EXPRESS + lib.PCI_EXP_DEVCAP, 4, lib.PCI_EXP_DEVCAP_FLR)
        put(EXPRESS + lib.PCI_EXP_LNKCAP, 4, 0x1234_5678)
        put(MSIX, 2, lib.PCI_CAP_ID_MSIX)
        put(MSIX + lib.PCI_MSIX_FLAGS, 2, VECTORS - 1)
        put(MSIX + lib.PCI_MSIX_TABLE, 4, TABLE | BAR0)
        put(MSIX + lib.PCI_MSIX_PBA, 4, PBA | BAR0)
        put(SRIOV, 4, lib.PCI_EXT_CAP_ID_SRIOV | 1 << 16 | SERIAL << 20)
        put(SERIAL, 4, 3 | 1 << 16 | ATS << 20)
        put(SERIAL + 4, 4, 0xCAFE)
        put(ATS, 4, lib.PCI_EXT_CAP_ID_ATS | 1 << 16)

    def put(self, offset: int, size: int, value: int) -> None:
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        if self.gone:
            raise VfioError(BDF, "pread", errno.ENODEV, {"offset": offset})
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if self.gone:
            raise VfioError(BDF, "pwrite", errno.ENODEV, {"offset": offset})
        self.diary.append(("config", offset, size, value))
        slept, command = self.asleep, self.read(COMMAND, 2)
        self.put(offset, size, value)
        if self.asleep and not slept:
            self.kept = command
        elif slept and not self.asleep:  # as VFIO does after a soft reset, on the way to D0
            self.put(COMMAND, 2, self.kept)
        self.on_write()

    @property
    def asleep(self) -> bool:
        return bool(self.bytes[PM + int(lib.PCI_PM_CTRL)] & int(lib.PCI_PM_CTRL_STATE_MASK))

    @property
    def answers(self) -> bool:
        """Whether the device's memory does: KVM cannot resolve accesses to it otherwise."""
        return bool(self.bytes[COMMAND] & COMMAND_MEMORY) and not self.asleep


class FakeIrqs:
    """Records calls of VFIO_DEVICE_SET_IRQS."""

    def __init__(self, diary: list[Any]) -> None:
        self.diary = diary
        self.used: IrqIndex | None = None
        self.signalled: dict[int, int] = {}

    def signal(self, index: IrqIndex, eventfds: Sequence[int], start: int = 0) -> None:
        assert self.used in (None, index), "VFIO has one kind at a time"
        self.used = index
        self.signalled.update(enumerate(eventfds, start))
        self.diary.append(("signal", index.name, start, len(eventfds)))

    def disable(self, index: IrqIndex) -> None:
        assert self.used is index
        self.used = None
        self.signalled.clear()
        self.diary.append(("disable", index.name))

    @property
    def kind(self) -> str:
        return self.used.name if self.used is not None else ""

    def unmask_by(self, index: IrqIndex, eventfd: int) -> None:
        assert self.used is index is IrqIndex.INTX
        assert eventfd >= 0


class FakeDevice:
    """Stands in for `vmm.vfio.device.VfioDevice`."""

    def __init__(
        self, owned: ExitStack, *, resizable: bool = True, resettable: bool = True
    ) -> None:
        self.bdf = BDF
        self.driver = "vfio-pci"
        self.function = SimpleNamespace(driver="vfio-pci")
        self.diary: list[Any] = []
        self.config = FakeConfig(self.diary)
        self.irqs = FakeIrqs(self.diary)
        self.resettable = resettable
        self.closed = False
        self._resizable = resizable
        fd = os.memfd_create("device")
        os.ftruncate(fd, 8 * STRIDE)
        self.file = owned.enter_context(VfioFd(fd, BDF))
        flags = lib.VFIO_REGION_INFO_FLAG_READ | lib.VFIO_REGION_INFO_FLAG_WRITE
        self.regions = [
            VfioRegion(BDF, RegionInfo(index, size, index * STRIDE, flags, areas), self.file)
            for index, size, areas in (
                (BAR0, BAR0_SIZE, (AddressRange(0, BAR0_SIZE),)),
                (BAR2, BAR2_SIZE, (AddressRange(0, BAR2_SIZE),)),
                (IO_BAR, IO_SIZE, ()),
                (lib.VFIO_PCI_ROM_REGION_INDEX, 4096, ()),
                (lib.VFIO_PCI_CONFIG_REGION_INDEX, 4096, ()),
            )
        ]

    def region(self, index: int) -> VfioRegion:
        return next(region for region in self.regions if region.index == index)

    def irq(self, index: IrqIndex) -> IrqInfo:
        counts = {IrqIndex.INTX: 1, IrqIndex.MSI: 4, IrqIndex.MSIX: VECTORS}
        fixed = index is IrqIndex.MSI or not self._resizable
        return IrqInfo(index, counts.get(index, 0), lib.VFIO_IRQ_INFO_NORESIZE if fixed else 0)

    @property
    def memory_enabled(self) -> bool:
        return bool(self.config.read(COMMAND, 2) & COMMAND_MEMORY)

    def enable_memory(self) -> None:
        self.config.put(COMMAND, 2, COMMAND_MEMORY)

    def reset(self) -> None:
        self.diary.append(("reset",))

    def close(self) -> None:
        self.closed = True
        self.diary.append(("close",))
        self.file.close()
