"""What a machine boots, as its configuration asks for it: kernel, initrd and command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.arm64 import boot, image
from vmm.config import DEFAULT_CMDLINE

if TYPE_CHECKING:
    from vmm.arm64.boot import BootPlan, Extent
    from vmm.arm64.image import Kernel
    from vmm.config import MachineConfig


class Payload(NamedTuple):
    """The kernel and its companions; *initrd_name* is the file the initrd is from."""

    kernel: Kernel
    initrd: memoryview | None
    initrd_name: str
    cmdline: str

    def place(self, ram: Extent) -> BootPlan:
        """Say where in *ram* everything goes. Raises `UserError` if it does not fit."""
        size = 0 if self.initrd is None else len(self.initrd)
        return boot.plan(ram, self.kernel, size, initrd_name=self.initrd_name)


def load(config: MachineConfig) -> Payload:
    """Read the files that *config* names. Raises `UserError`, saying what is wrong with which."""
    kernel = image.load(config.image, config.memory)
    name, initrd = str(config.image), kernel.initrd
    if config.initrd is not None:
        name, initrd = str(config.initrd), image.map_file(config.initrd)
    choices = (config.cmdline, kernel.cmdline, DEFAULT_CMDLINE)
    return Payload(kernel, initrd, name, next(text for text in choices if text is not None))
