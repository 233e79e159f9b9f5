"""``--memory-dump``: the guest's RAM in a file, once the guest has ended.

The file is as long as RAM, and sparse: byte 0 is the first byte of RAM, and zeroes take no space.
It appears whole or not at all, under its own name only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmm import broker
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.long_work import at_once
from vmm.machine.ram_file import write_ram

if TYPE_CHECKING:
    from vmm.coherence.ledger import Ledger
    from vmm.memory import Region


class MemoryDump(Closeable):
    """Own the file that will be *path*. Raises `UserError` if there can be none."""

    def __init__(self, path: Path) -> None:
        self._option = f"--memory-dump {path}"
        self._path = path
        try:
            if path.is_dir():
                raise UserError(f"{self._option}: a directory", "name a file")
            self._fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise UserError(
                f"{self._option}: {error.strerror}", "name a file in a directory that you can write"
            ) from error
        self._broker = broker.current()
        names = str(Path(temporary).absolute()), str(path.absolute())
        self._debt = self._broker.owe("file", *names)

    def write(self, ram: Region, ledger: Ledger) -> None:
        """Write *ram*, whose guest has stopped, with the cache maintenance that *ledger* owes it.

        Raises `HostError`: the disk is full.
        """
        try:
            at_once(write_ram(self._fd, ram, ledger))
            self._broker.pay(self._debt)
        except OSError as error:
            raise HostError(f"{self._option}: {error.strerror}", "free some space") from error

    def close(self) -> None:
        """Close the file; remove it if it was not written. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            with suppress(OSError, HostError):  # without a broker, it is removed already
                self._broker.pay(self._debt, asked=False)
