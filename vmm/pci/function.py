"""One PCI function: its configuration space, its BARs, its interrupts.

Derive from `PciFunction`, or compose: give it BARs with the devices that answer them, add
capabilities to `config`, and attach it to a `vmm.pci.host.PciHost`. A function of a real device
overrides `read_config` and `write_config`, and calls these for what is emulated.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.closeable import Closeable
from vmm.pci import capability
from vmm.pci.bar import Space
from vmm.pci.config import ConfigSpace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from vmm.irq import InterruptLine
    from vmm.pci.bar import Bar
    from vmm.pci.msix import Msix

INTA: Final = 1
"""An interrupt pin; 0 is none."""


class Identity(NamedTuple):
    """The IDs of a function; *class_code* has 24 bits: class, subclass, interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class HostBridge(Protocol):
    """What a function asks of the host bridge that owns it: `vmm.pci.host.PciHost`."""

    def alone(self) -> AbstractContextManager[object]:
        """Return the lock that keeps vCPUs out of configuration space."""

    def settle(self, function: PciFunction) -> None:
        """Map *function*'s BARs as `PciFunction.decoded` says."""


class PciFunction(Closeable):
    """A function called *name* in events, with *bars* and, unless *pin* is 0, INTx.

    *config* is a derived class's configuration space, which gets the header. `read_config`,
    `write_config` and `reset` are called with the host bridge's lock, from vCPU threads;
    `set_intx` from any thread. Raises ValueError if BARs overlap.
    """

    def __init__(
        self,
        name: str,
        identity: Identity,
        bars: Sequence[Bar] = (),
        *,
        pin: int = 0,
        config: ConfigSpace | None = None,
    ) -> None:
        self.name = name
        self.bars = tuple(bars)
        self.config = ConfigSpace() if config is None else config
        self.host: HostBridge | None = None
        """The host bridge that it is attached to."""
        self.slot: int | None = None
        """Its device number on the root bus, once attached; its requester id is that times 8."""
        self.line: InterruptLine | None = None
        """The interrupt line that INTx drives, once attached."""
        self.msix: Msix | None = None
        self._msix_at = self._express_at = self._power_at = 0
        self._intx = False
        self._intx_lock = Lock()
        self._define_header(identity, pin)
        self._define_bars()

    def _define_header(self, identity: Identity, pin: int) -> None:
        spaces = {bar.space for bar in self.bars}
        command = lib.PCI_COMMAND_MASTER | lib.PCI_COMMAND_PARITY | lib.PCI_COMMAND_SERR
        command |= lib.PCI_COMMAND_INTX_DISABLE
        command |= lib.PCI_COMMAND_IO if Space.IO in spaces else 0
        command |= lib.PCI_COMMAND_MEMORY if spaces - {Space.IO} else 0
        kind = identity.class_code << 8 | identity.revision
        for offset, size, value, writable in (
            (lib.PCI_VENDOR_ID, 2, identity.vendor, 0),
            (lib.PCI_DEVICE_ID, 2, identity.device, 0),
            (lib.PCI_COMMAND, 2, 0, command),
            (lib.PCI_CLASS_REVISION, 4, kind, 0),
            (lib.PCI_CACHE_LINE_SIZE, 1, 0, 0xFF),
            (lib.PCI_SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor, 0),
            (lib.PCI_SUBSYSTEM_ID, 2, identity.subsystem, 0),
            (lib.PCI_INTERRUPT_LINE, 1, 0, 0xFF if pin else 0),
            (lib.PCI_INTERRUPT_PIN, 1, pin, 0),
        ):
            self.config.define_register(offset, size, value, writable)

    def _define_bars(self) -> None:
        taken: set[int] = set()
        for bar in self.bars:
            registers = set(range(bar.index, bar.index + bar.width // 4))
            if taken & registers:
                raise ValueError(f"{self.name}: BAR {bar.index} is there twice")
            taken |= registers
            self.config.define_register(bar.offset, bar.width, bar.flags, bar.mask)

    # What it is made of

    def add_msix(
        self, msix: Msix, table: tuple[int, int], pba: tuple[int, int], at: int | None = None
    ) -> None:
        """Add MSI-X; *table* and *pba* are the (BAR, offset) of its bus devices."""
        value = capability.msix(msix.vectors, table, pba)
        self._msix_at = self.config.add_capability(value, at)
        self.msix = msix

    def add_express(self, at: int | None = None) -> None:
        """Add PCI Express: an endpoint in the root complex, with function-level reset."""
        self._express_at = self.config.add_capability(capability.express(), at)

    def add_power_management(self, at: int | None = None) -> None:
        """Add power management: D0, and D3hot, in which no BAR is decoded."""
        self._power_at = self.config.add_capability(capability.power_management(), at)

    # What the host bridge asks

    def attached(self, host: HostBridge, slot: int, line: InterruptLine) -> None:
        """Note that *host* owns it now, in *slot*, with *line* for INTx."""
        self.host, self.slot, self.line = host, slot, line

    def read_config(self, offset: int, size: int) -> int:
        """Return 1, 2 or 4 aligned bytes of configuration space."""
        return self.config.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 aligned bytes, with their effects but for BARs: see `decoded`."""
        reset = self._express_at and self._asks_for_reset(offset, size, value)
        self.config.write(offset, size, value)
        if reset:
            self.reset()
            return
        flags = AddressRange(self._msix_at + lib.PCI_MSIX_FLAGS, 2)
        if self.msix is not None and flags.overlaps(AddressRange(offset, size)):
            enabled, masked = self._msix_control()
            self.msix.set_control(enabled=enabled, masked=masked)
        self._drive_intx()

    def _asks_for_reset(self, offset: int, size: int, value: int) -> bool:
        at = self._express_at + lib.PCI_EXP_DEVCTL + 1  # the byte with the bit
        bit = int(lib.PCI_EXP_DEVCTL_BCR_FLR) >> 8
        return offset <= at < offset + size and bool(value >> 8 * (at - offset) & bit)

    def decoded(self, bar: Bar) -> int | None:
        """Return the bus address at which the guest decodes *bar*; None if it does not."""
        gate = lib.PCI_COMMAND_IO if bar.space is Space.IO else lib.PCI_COMMAND_MEMORY
        if not self.config.read(lib.PCI_COMMAND, 2) & gate or self._asleep():
            return None
        address = self.config.read(bar.offset, bar.width) & bar.mask
        return None if address == bar.mask else address  # all ones: the guest asks for its size

    def _asleep(self) -> bool:
        if not self._power_at:
            return False
        control = self.config.read(self._power_at + lib.PCI_PM_CTRL, 2)
        return bool(control & lib.PCI_PM_CTRL_STATE_MASK)

    # State

    def restore_config(self, config: bytes, entries: bytes) -> None:
        """Take over configuration space and MSI-X's table *entries*, with their effects.

        The host bridge maps the BARs then (`HostBridge.settle`). Raises ValueError if *config* is
        another function's.
        """
        self.config.restore(config)
        if self.msix is not None:
            enabled, masked = self._msix_control()
            self.msix.restore(entries, enabled=enabled, masked=masked)

    def _msix_control(self) -> tuple[bool, bool]:
        """Return MSI-X Enable and Function Mask."""
        control = self.config.read(self._msix_at + lib.PCI_MSIX_FLAGS, 2)
        enabled, masked = lib.PCI_MSIX_FLAGS_ENABLE, lib.PCI_MSIX_FLAGS_MASKALL
        return bool(control & enabled), bool(control & masked)

    # Interrupts

    def set_intx(self, level: bool) -> None:  # noqa: FBT001  (a level *is* a boolean)
        """Drive INTx, unless the guest has disabled it. Thread-safe."""
        self._intx = level
        self._drive_intx()

    def _drive_intx(self) -> None:
        with self._intx_lock:
            level = self._intx
            status = self.config.read(lib.PCI_STATUS, 2) & ~lib.PCI_STATUS_INTERRUPT
            self.config.set(lib.PCI_STATUS, 2, status | (lib.PCI_STATUS_INTERRUPT if level else 0))
            off = self.config.read(lib.PCI_COMMAND, 2) & lib.PCI_COMMAND_INTX_DISABLE
            off = off or (self.msix is not None and self.msix.enabled)
            if self.line is not None:
                self.line.set_level(level and not off)

    # Life

    def reset(self) -> None:
        """Go back to power-on state: no BAR decoded, interrupts off. The host unmaps its BARs."""
        self.config.reset()
        if self.msix is not None:
            self.msix.reset()
        self.set_intx(False)

    def close(self) -> None:
        """Close what it owns: nothing here. Its BARs are unmapped by then. Idempotent."""
