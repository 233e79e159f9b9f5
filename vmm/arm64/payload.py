"""What a machine boots, as its configuration asks for it: kernel, initrd and command line.

With firmware, which is in flash already (`vmm.machine.flash`), there is at most a command line.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm.arm64 import boot, image
from vmm.closeable import Closeable

if TYPE_CHECKING:
    from vmm.address_range import AddressRange
    from vmm.arm64.boot import BootPlan
    from vmm.arm64.image import Kernel
    from vmm.config import MachineConfig


class Payload(NamedTuple):
    """The kernel and its companions; *initrd_name* is the file the initrd is from."""

    kernel: Kernel | None
    initrd: memoryview | None
    initrd_name: str
    cmdline: str | None

    def place(self, ram: AddressRange) -> BootPlan:
        """Say where in *ram* everything goes. Raises `UserError` if it does not fit."""
        if self.kernel is None:
            return boot.firmware_plan(ram)
        size = 0 if self.initrd is None else len(self.initrd)
        return boot.plan(ram, self.kernel, size, initrd_name=self.initrd_name)


def load(
    config: MachineConfig, kernel_at: Path | None = None, initrd_at: Path | None = None
) -> Payload:
    """Read the files that *config* names. Raises `UserError`, saying what is wrong with which.

    *kernel_at* and *initrd_at* are where they are to be found now, if not by their names.
    """
    if config.image is None:
        return Payload(None, None, "", config.cmdline)
    name = str(config.image)
    kernel = image.identify(image.map_file(kernel_at or config.image), name, config.memory)
    initrd = kernel.initrd
    if config.initrd is not None:
        name, initrd = str(config.initrd), image.map_file(initrd_at or config.initrd)
    choices = (config.cmdline, kernel.cmdline, config.default_cmdline)
    return Payload(kernel, initrd, name, next(text for text in choices if text is not None))


class Files(Closeable):
    """The files that *config* names: open, so that a reset finds them whatever their names do.

    Not kept in memory, where a kernel would take tens of megabytes for as long as its guest
    runs. Raises `UserError` as `load` does.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        self._owned = ExitStack()
        self._first: Payload | None = load(config)
        self._kernel = self._open(config.image) if config.image is not None else None
        self._initrd = self._open(config.initrd) if config.initrd is not None else None

    def _open(self, path: Path) -> Path:
        """Return a name for the file at *path* that lasts until `close`."""
        return Path(f"/proc/self/fd/{self._owned.enter_context(path.open('rb')).fileno()}")

    def read(self) -> Payload:
        """Return what is in them. Let go of it once it is in the guest's memory."""
        first, self._first = self._first, None
        return first or load(self._config, self._kernel, self._initrd)

    def close(self) -> None:
        """Close them. Idempotent."""
        self._owned.close()
