"""Files as read-only memory."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from io import FileIO
from pathlib import Path

from vmm._native import ffi
from vmm.errors import UserError
from vmm.sigbus import Watched

EAGER = 256 << 20
"""Bytes up to which a file is populated at once. Larger files are rarely needed as a whole."""

_MADV_POPULATE_READ = 22  # <linux/mman.h>; Python's mmap has no name for it


def map_file(path: Path | str, eager: int = EAGER, fd: int | None = None) -> memoryview:
    """Map the file at *path*; return a view that keeps the mapping alive.

    *fd* is the file if it is open already, and stays open.

    A file of up to *eager* bytes is populated at once: faulting its pages one by one takes ten
    times as long. What it loses meanwhile is for `vmm.sigbus.check` to tell. Raises UserError for a
    file that cannot be read, is not regular, or is empty.
    """
    path = Path(path)
    try:
        if fd is None and path.exists() and not path.is_file():
            what = "a directory" if path.is_dir() else "not a regular file"
            raise UserError(f"{path}: {what}", "give a file")
        opened = path.open("rb", buffering=0) if fd is None else FileIO(fd, closefd=False)
        with opened as file:
            status = os.fstat(file.fileno())
            if not status.st_size:
                raise UserError(f"{path}: the file is empty", "copy or download it again")
            try:
                content = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
            except OSError:  # some network file systems cannot map files
                file.seek(0)  # the descriptor may have been read before
                return memoryview(file.readall())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "check the path and its permissions") from None
    with ffi.from_buffer("uint8_t[]", content) as pointer:
        address = int(ffi.cast("uintptr_t", pointer))
    watched = Watched(str(path), address, len(content))
    weakref.finalize(content, watched.close)
    if len(content) <= eager:
        with suppress(OSError):  # before Linux 5.14 pages are faulted in one by one
            content.madvise(_MADV_POPULATE_READ)
    return memoryview(content)
