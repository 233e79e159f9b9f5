"""A machine's kernel, initrd and command line, as its configuration names them.

With firmware, which is in flash (`vmm.machine.flash`), there is at most a command line.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm import sigbus
from vmm.arm64 import boot, image
from vmm.closeable import Closeable
from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.address_range import AddressRange
    from vmm.arm64.boot import BootPlan
    from vmm.arm64.image import Kernel
    from vmm.config import MachineConfig


CMDLINE_BYTES: Final = 2047
"""Longest command line that Linux keeps whole: COMMAND_LINE_SIZE, 2048, has a NUL at its end
(arch/arm64/include/uapi/asm/setup.h)."""


class Payload(NamedTuple):
    """The kernel and its companions; *initrd_name* is the initrd's file, for messages."""

    kernel: Kernel | None
    initrd: memoryview | None
    initrd_name: str
    cmdline: str | None

    def place(self, ram: AddressRange) -> BootPlan:
        """Place everything in *ram*. Raises `UserError` if it does not fit."""
        if self.kernel is None:
            return boot.firmware_plan(ram)
        size = 0 if self.initrd is None else len(self.initrd)
        return boot.plan(ram, self.kernel, size, initrd_name=self.initrd_name)


def load(
    config: MachineConfig, kernel_fd: int | None = None, initrd_fd: int | None = None
) -> Payload:
    """Read the files that *config* names. Raises `UserError`, which names the file and its fault.

    *kernel_fd* and *initrd_fd* are the same files, open; None: open them. Raises `LostError` if a
    file is made shorter meanwhile.
    """
    if config.image is None:
        return Payload(None, None, "", config.cmdline)
    name = str(config.image)
    kernel = image.identify(image.map_file(config.image, fd=kernel_fd), name, config.memory)
    initrd = kernel.initrd
    if config.initrd is not None:
        name, initrd = str(config.initrd), image.map_file(config.initrd, fd=initrd_fd)
    choices = (config.cmdline, kernel.cmdline, config.default_cmdline)
    cmdline = next(text for text in choices if text is not None)
    if (size := len(cmdline.encode())) > CMDLINE_BYTES:
        raise UserError(
            f"the kernel command line has {size} bytes, and Linux on arm64 drops what is beyond "
            f"{CMDLINE_BYTES}",
            "make --cmdline shorter",
        )
    if config.command is not None:
        from vmm.arm64 import guest_command

        initrd = guest_command.append(initrd, config.command, name)
    sigbus.check()
    return Payload(kernel, initrd, name, cmdline)


class Files(Closeable):
    """Own open descriptors of *config*'s files, so that a reset reads the same files again.

    Contents are not kept: a kernel would take tens of megabytes for as long as its guest runs.
    Raises `UserError` as `load` does.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        self._owned = ExitStack()
        self._first: Payload | None = load(config)
        self._kernel = self._open(config.image) if config.image is not None else None
        self._initrd = self._open(config.initrd) if config.initrd is not None else None

    def _open(self, path: Path) -> int:
        """Open *path* until `close`; return the descriptor. A sealed process opens nothing."""
        return self._owned.enter_context(path.open("rb")).fileno()

    def read(self) -> Payload:
        """Read the files. Drop the result once it is in guest memory."""
        first, self._first = self._first, None
        return first or load(self._config, self._kernel, self._initrd)

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._owned.close()
