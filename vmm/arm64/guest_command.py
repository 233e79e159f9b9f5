"""A command for the small guest, as an archive behind its initrd.

    initrd (newc), with etc/pyvmm.guest | zeros to 4 bytes | newc archive: etc/pyvmm.command

Linux unpacks archives that follow each other one after the other. A kernel command line could not
carry it: that is 2047 bytes long, and has no quoting for all of them.
"""

from __future__ import annotations

import io
import os
import shlex
from typing import TYPE_CHECKING, Final

from vmm.config.command import TAG
from vmm.cpio import CpioWriter
from vmm.errors import UserError

if TYPE_CHECKING:
    from vmm.config.command import CommandConfig

MARKER: Final = b"etc/pyvmm.guest\0"
"""Name of a file in the small guest's initrd whose init knows `FILE`. It is among the first."""

MARKER_WITHIN: Final = 4096

FILE: Final = "etc/pyvmm.command"


def append(initrd: memoryview | None, command: CommandConfig, name: str) -> memoryview:
    """Return *initrd*, from the file *name*, with *command* behind it.

    Raises `UserError`: it is not the small guest's, so that nobody would run the command.
    """
    if initrd is None or MARKER not in bytes(initrd[:MARKER_WITHIN]):
        raise UserError(
            f"{name}: not pyvmm's small guest, so it cannot run COMMAND",
            "scripts/quickstart makes one; --kernel-tree puts one around a kernel",
        )
    return memoryview(b"".join((initrd, bytes(-len(initrd) % 4), archive(command))))


def archive(command: CommandConfig) -> bytes:
    """Return the archive with *command* for the guest's init."""
    file = io.BytesIO()
    writer = CpioWriter(file)
    writer.file(FILE, script(command))
    writer.close()
    return file.getvalue()


def script(command: CommandConfig) -> bytes:
    """Return *command* as assignments for a POSIX shell, with the words as ``$1`` and so on."""
    lines = (
        f"directory={shlex.quote(command.directory)}",
        f"tag={TAG if command.directory.strip('/') else ''}",
        f"terminal={shlex.quote(command.terminal)}",
        f"set -- {' '.join(map(shlex.quote, command.argv))}",
    )
    return b"".join(os.fsencode(line) + b"\n" for line in lines)
