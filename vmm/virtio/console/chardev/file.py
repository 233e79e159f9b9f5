"""A file, FIFO or device that gets what the guest writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.errors import UserError
from vmm.virtio.console.chardev.chardev import Chardev

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.loop import Loop


class FileChardev(Chardev):
    """Output to the file *path*, emptied first. Raises `UserError`, which names *option*."""

    def __init__(self, loop: Loop, path: Path, option: str) -> None:
        super().__init__(loop)
        flags = os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        # A FIFO that is opened for reading as well needs no reader yet.
        flags |= os.O_RDWR if path.is_fifo() else os.O_WRONLY
        try:
            self.output_fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise UserError(
                f"{option}: {path}: {error.strerror}", "name a file that can be written"
            ) from error
