"""The board's flash, in two banks: the firmware's code, and its variables (UEFI's, for one).

    file --private mapping--> contents --read-only memory slot--> guest    in array mode
     ^                           |
     '------- program, erase ----'<-- CfiFlash <--exits-- guest            other modes; all stores

Banks last from reset to reset. Each power cycle's VM gets their memory slots from here.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.arm64 import board, layout
from vmm.bus import MmioBus
from vmm.closeable import Closeable
from vmm.devices.cfi_flash import SIZE, CfiFlash
from vmm.errors import UserError
from vmm.events import Events
from vmm.machine.flash_file import FlashFile, check_file

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config import MachineConfig
    from vmm.fdt import Node
    from vmm.kvm.slots import MemorySlot, MemorySlots

KERNEL: Final = 56, b"ARM\x64"
"""Offset and magic number of a Linux kernel (Documentation/arch/arm64/booting.rst)."""
EFI_PROGRAM: Final = 0, b"MZ"
QCOW2: Final = 0, b"QFI\xfb"


class FlashBank(Closeable):
    """Own one bank, at guest physical *base*. Use as a context manager."""

    def __init__(
        self, name: str, base: int, file: FlashFile, events: Events, *, read_only: bool
    ) -> None:
        self.base = base
        self._file = file
        self._slots: MemorySlots | None = None
        self.device = CfiFlash(name, file, events, read_only=read_only)
        self.device.on_array = self._show

    def plug(self, slots: MemorySlots) -> None:
        """Map the array into a VM that does not run yet. Raises `KvmError`."""
        self._slots = slots
        self._show(array=True)

    def _show(self, array: bool) -> None:  # noqa: FBT001  (the hook's signature)
        if self._slots is None:
            return
        if array:
            address = self._file.host_address
            self._slots.add(self.base, SIZE, address, lib.KVM_MEM_READONLY)
        elif slot := self._slots.find(self.base):
            self._slots.remove(slot)

    def shown(self) -> MemorySlot | None:
        """Return the memory slot of the array; None in other modes."""
        return None if self._slots is None else self._slots.find(self.base)

    def unplug(self) -> None:
        """Forget the VM. Its vCPUs have stopped."""
        self._slots = None

    def close(self) -> None:
        """Sync and close the contents. No VM may map them. Idempotent."""
        with suppress(OSError):  # the guest's writes were acknowledged long ago
            self._file.sync()
        self._file.close()


class Flash(Closeable):
    """Own the banks of *config*, on *bus*. Use as a context manager.

    With firmware there are always two. Without ``--flash`` the variables last until the machine
    ends. Raises `UserError` and `HostError`.
    """

    def __init__(self, config: MachineConfig, bus: MmioBus, events: Events) -> None:
        self._owned = ExitStack()
        self.banks: list[FlashBank] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            if config.firmware is not None:
                option = "--firmware"
                file = self._owned.enter_context(FlashFile(config.firmware, option=option))
                check_code(config.firmware, file)
                self._add(bus, FlashBank("code", layout.FLASH, file, events, read_only=True))
            flash, read_only = config.flash, False
            if flash is None:
                file = FlashFile(None)
            else:
                check_separate(config.firmware, flash.path)
                read_only = flash.read_only
                file = FlashFile(
                    flash.path, option="--flash", read_only=read_only, make=not read_only
                )
            bank = FlashBank("variables", layout.FLASH + SIZE, file, events, read_only=read_only)
            self._add(bus, bank)
            undo.pop_all()

    def _add(self, bus: MmioBus, bank: FlashBank) -> None:
        self.banks.append(self._owned.enter_context(bank))
        bus.attach(bank.base, SIZE, bank.device)

    def plug(self, slots: MemorySlots) -> None:
        """Map the banks' arrays into a VM that does not run yet. Raises `KvmError`."""
        for bank in self.banks:
            bank.plug(slots)

    def shown(self) -> list[tuple[str, MemorySlot]]:
        """Return name and memory slot of each bank in array mode."""
        return [
            (f"flash: {bank.device.name}", slot) for bank in self.banks if (slot := bank.shown())
        ]

    def unplug(self) -> None:
        """Forget the VM. Its vCPUs have stopped."""
        for bank in self.banks:
            bank.unplug()

    def node(self) -> Node:
        """Return the device tree node."""
        return board.flash([AddressRange(bank.base, SIZE) for bank in self.banks])

    def reset(self) -> None:
        """Put all banks back into array mode. No VM may map them."""
        for bank in self.banks:
            bank.device.reset()

    def close(self) -> None:
        """Close the banks. No VM may map them. Idempotent."""
        self._owned.close()


def check_files(config: MachineConfig) -> None:
    """Raise the `UserError` that `Flash` would raise for its files; create none."""
    flash = config.flash
    if flash is not None and not flash.read_only and not os.path.exists(flash.path):  # noqa: PTH110
        check_file("--flash", flash.path)
        config = replace(config, flash=None)
    with Flash(config, MmioBus(), Events()):
        """All files can be opened."""


def check_separate(firmware: Path | None, flash: Path) -> None:
    """Raise `UserError` if both are one file: firmware would overwrite itself."""
    with suppress(OSError):
        if firmware is not None and flash.samefile(firmware):
            raise UserError(f"--flash {flash}: it is what --firmware names", "name another file")


def check_code(path: Path, file: FlashFile) -> None:
    """Raise `UserError` if *file* is known not to be firmware with its entry point at offset 0."""
    if file.is_empty:
        raise UserError(f"--firmware {path}: the file is empty", "name firmware")
    for (offset, magic), what, hint in (
        (KERNEL, "it is to be loaded into RAM like a Linux kernel", "name it as IMAGE"),
        (EFI_PROGRAM, "it is an EFI program", "have firmware load it from a --disk"),
        (QCOW2, "it is a qcow2 image", "convert it: qemu-img convert -O raw"),
    ):
        if file.read(offset, len(magic)) == magic:
            raise UserError(f"--firmware {path}: {what}", hint)
