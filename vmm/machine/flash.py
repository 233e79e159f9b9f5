"""The board's flash, in two banks: firmware, and what it keeps - UEFI's variables, for one.

    file --private mapping--> contents --read-only memory slot--> guest    in array mode
     ^                           |
     '------- program, erase ----'<-- CfiFlash <--exits-- guest            else, and all stores

What a file does not have is erased flash: one page of it in memory, however often it is mapped.
The file grows as far as it is written. Banks last from reset to reset; each power cycle's VM gets
their slots from here.
"""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.address_range import AddressRange
from vmm.arm64 import board, layout
from vmm.bus import MmioBus
from vmm.closeable import Closeable
from vmm.devices.cfi_flash import SIZE, CfiFlash
from vmm.errors import HostError, UserError
from vmm.events import Events
from vmm.image_lock import lock_image

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config import MachineConfig
    from vmm.fdt import Node
    from vmm.kvm.slots import MemorySlot, MemorySlots

PIECE: Final = 2 << 20
"""Bytes of erased flash that are in memory; mapped again and again."""

ERASED: Final = b"\xff"

KERNEL: Final = 56, b"ARM\x64"
"""Offset and magic number of a Linux kernel (Documentation/arch/arm64/booting.rst)."""
EFI_PROGRAM: Final = 0, b"MZ"
QCOW2: Final = 0, b"QFI\xfb"


class FlashFile(Closeable):
    """Owns a bank's contents, and the file at *path* that they are from; none: they are forgotten.

    *option* is what errors call it by. With *make* it need not exist. It is locked (flock), against
    a second machine that writes it. Nobody may make it shorter meanwhile: an access
    beyond its end would kill us (SIGBUS). Raises `UserError`, `HostError`.
    """

    def __init__(
        self, path: Path | None, *, option: str = "", read_only: bool = True, make: bool = False
    ) -> None:
        self._option = f"{option} {path}" if path is not None else "flash"
        self._owned = ExitStack()
        self._fd: int | None = None
        self._size = 0
        with ExitStack() as undo:
            undo.callback(self.close)
            if path is not None:
                self._open(path, read_only=read_only, make=make)
            self._map()
            if read_only:
                self._fd = None  # nothing will be written
            undo.pop_all()

    def _open(self, path: Path, *, read_only: bool, make: bool) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if make else 0)
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            hint = "name a file that can be read"
            if make:
                hint = "name one that can be written, or add ,ro to have it read only"
            raise UserError(f"{self._option}: {error.strerror}", hint) from error
        self._owned.callback(os.close, self._fd)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise UserError(f"{self._option}: not a regular file", "name one")
        lock_image(self._fd, self._option, read_only=read_only)
        self._size = os.fstat(self._fd).st_size
        if self._size > SIZE:
            raise UserError(
                f"{self._option}: {self._size} bytes are more than the {SIZE >> 20} MiB of a bank "
                "of flash",
                "use a smaller file",
            )

    def _map(self) -> None:
        try:
            mapping = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._owned.callback(mapping.close)
            with ffi.from_buffer("uint8_t[]", mapping) as pointer:
                self.host_address = int(ffi.cast("uintptr_t", pointer))
            whole = self._size - self._size % mmap.PAGESIZE
            if whole and self._fd is not None:
                _place(self.host_address, self._fd, whole)
            self._map_erased(whole)
            self._view = memoryview(mapping)
            self._owned.callback(self._view.release)
            if tail := self._size - whole:
                assert self._fd is not None
                self._view[whole : self._size] = os.pread(self._fd, tail, whole)
        except (OSError, ValueError) as error:
            raise HostError(
                f"{self._option}: cannot map a bank of flash: {error}",
                "use a file of a local file system, or raise the limit on address space "
                "(ulimit -v)",
            ) from error

    def _map_erased(self, start: int) -> None:
        """Have erased flash from *start*, a multiple of pages, to the end."""
        fd = os.memfd_create("erased flash", os.MFD_CLOEXEC)
        try:
            os.write(fd, ERASED * PIECE)
            while start < SIZE:
                size = PIECE - start % PIECE
                _place(self.host_address + start, fd, size)
                start += size
        finally:
            os.close(fd)

    @property
    def is_empty(self) -> bool:
        """Whether the file has no byte."""
        return not self._size

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there."""
        return bytes(self._view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Put it there, and into the file. Raises OSError, with nothing changed here."""
        if self._fd is not None:
            self._save(self._fd, offset, data)
        self._view[offset : offset + len(data)] = data

    def _save(self, fd: int, offset: int, data: bytes) -> None:
        room = self._size - offset
        if len(data) > room:  # what is after its end is erased without being in it
            kept = len(data.rstrip(ERASED))
            if room >= 0:
                data = data[: max(kept, room)]
            elif kept:
                data, offset = ERASED * -room + data[:kept], self._size
            else:
                return
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done
        self._size = max(self._size, offset)

    def sync(self) -> None:
        """Return when all that was written is on the disk. Raises OSError."""
        if self._fd is not None:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Unmap it, and unlock it; no memory slot may show it. Idempotent."""
        self._fd = None
        self._owned.close()


def _place(address: int, fd: int, size: int) -> None:
    error = lib.pyvmm_map_private(address, fd, 0, size)
    if error:
        raise OSError(-error, os.strerror(-error))


class FlashBank(Closeable):
    """Owns one bank, at guest physical *base*. Use as a context manager."""

    def __init__(
        self, name: str, base: int, file: FlashFile, events: Events, *, read_only: bool
    ) -> None:
        self.base = base
        self._file = file
        self._slots: MemorySlots | None = None
        self.device = CfiFlash(name, file, events, read_only=read_only)
        self.device.on_array = self._show

    def plug(self, slots: MemorySlots) -> None:
        """Show it to a VM, which does not run yet. Raises `KvmError`."""
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
        """Return the memory slot that shows the array; None in other modes."""
        return None if self._slots is None else self._slots.find(self.base)

    def unplug(self) -> None:
        """Forget the VM, whose vCPUs have stopped."""
        self._slots = None

    def close(self) -> None:
        """Let go of the contents. No VM may have them. Idempotent."""
        with suppress(OSError):  # the guest was told that it is written, as by a disk's cache
            self._file.sync()
        self._file.close()


class Flash(Closeable):
    """Owns the banks that *config* asks for, on *bus*. Use as a context manager.

    With firmware there are always two: variables that no file keeps last until the machine ends.
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
        """Show the banks to a VM, which does not run yet. Raises `KvmError`."""
        for bank in self.banks:
            bank.plug(slots)

    def shown(self) -> list[tuple[str, MemorySlot]]:
        """Return the memory slots of the banks whose array shows, and what they are."""
        return [
            (f"flash: {bank.device.name}", slot) for bank in self.banks if (slot := bank.shown())
        ]

    def unplug(self) -> None:
        """Forget the VM, whose vCPUs have stopped."""
        for bank in self.banks:
            bank.unplug()

    def node(self) -> Node:
        """Describe it for the device tree."""
        return board.flash([AddressRange(bank.base, SIZE) for bank in self.banks])

    def reset(self) -> None:
        """Put all banks back to array mode. No VM may have them."""
        for bank in self.banks:
            bank.device.reset()

    def close(self) -> None:
        """Let go of the banks. No VM may have them. Idempotent."""
        self._owned.close()


def check_files(config: MachineConfig) -> None:
    """Raise `UserError` for files that cannot be flash; one that is to be made is made."""
    with Flash(config, MmioBus(), Events()):
        """They can."""


def check_separate(firmware: Path | None, flash: Path) -> None:
    """Raise `UserError` if one file is to be both: firmware would write over itself."""
    with suppress(OSError):
        if firmware is not None and flash.samefile(firmware):
            raise UserError(f"--flash {flash}: it is what --firmware names", "name another file")


def check_code(path: Path, file: FlashFile) -> None:
    """Raise `UserError` for what is known not to be firmware that begins at its first byte."""
    if file.is_empty:
        raise UserError(f"--firmware {path}: the file is empty", "name firmware")
    for (offset, magic), what, hint in (
        (KERNEL, "it is to be loaded into RAM like a Linux kernel", "name it as IMAGE"),
        (EFI_PROGRAM, "it is an EFI program", "have firmware load it from a --disk"),
        (QCOW2, "it is a qcow2 image", "convert it: qemu-img convert -O raw"),
    ):
        if file.read(offset, len(magic)) == magic:
            raise UserError(f"--firmware {path}: {what}", hint)
