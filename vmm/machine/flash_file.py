"""The contents of a bank of flash, and the file that keeps them.

A bank is mapped from its file privately, page by page, and written through to it. The part that
the file lacks is erased flash: one piece of 2 MiB, mapped again and again. The file grows as far
as it is written.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmm import sigbus
from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.coherence import vma
from vmm.devices.cfi_flash import SIZE
from vmm.errors import HostError, UserError
from vmm.image_lock import lock_image

if TYPE_CHECKING:
    from pathlib import Path

PIECE: Final = 2 << 20
"""Bytes of erased flash in memory."""

ERASED: Final = b"\xff"


class FlashFile(Closeable):
    """Own a bank's contents: `SIZE` bytes of memory, and the file at *path* that keeps them.

    Without *path* the contents are lost at `close`. *option* names the file in errors. With
    *make* a file that does not exist is created. The file is locked with flock; it must not be
    truncated meanwhile, as an access beyond its end is a SIGBUS. Raises `UserError` for the file,
    `HostError` if it cannot be mapped.
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
                self._fd = None  # `write` and `sync` do nothing to the file
            undo.pop_all()

    def _open(self, path: Path, *, read_only: bool, make: bool) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if make else 0)
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise _cannot_open(self._option, error.errno, make=make) from error
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
            on_dax = self._fd is not None and lib.pyvmm_is_dax(self._fd) != 0
            if whole and self._fd is not None and not on_dax:
                _place(self.host_address, self._fd, whole)
                vma.check_file(self._option, self.host_address)
                watched = sigbus.Watched(self._option, self.host_address, whole)
                self._owned.callback(watched.close)
            self._map_erased(whole)
            self._view = memoryview(mapping)
            self._owned.callback(self._view.release)
            # Pages of DAX files may be Device at stage 2 (vmm/coherence/dax.py): copy them.
            copied = 0 if on_dax else whole
            if self._size > copied:
                assert self._fd is not None
                self._view[copied : self._size] = os.pread(self._fd, self._size - copied, copied)
        except (OSError, ValueError) as error:
            raise HostError(
                f"{self._option}: cannot map a bank of flash: {error}",
                "use a file of a local file system, or raise the limit on address space "
                "(ulimit -v)",
            ) from error

    def _map_erased(self, start: int) -> None:
        """Map erased flash from *start*, a multiple of the page size, to the end of the bank."""
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
        """Whether the file has a size of 0."""
        return not self._size

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*."""
        return bytes(self._view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write *data* to the file, then to memory. Raises OSError, with memory unchanged."""
        if self._fd is not None:
            self._save(self._fd, offset, data)
        self._view[offset : offset + len(data)] = data

    def _save(self, fd: int, offset: int, data: bytes) -> None:
        room = self._size - offset
        if len(data) > room:  # erased bytes after the file's end need not be stored
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
        """Make all writes durable (fdatasync). Raises OSError."""
        if self._fd is not None:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Unmap the contents and unlock the file. No memory slot may map them. Idempotent."""
        self._fd = None
        self._owned.close()


def _place(address: int, fd: int, size: int) -> None:
    error = lib.pyvmm_map_private(address, fd, 0, size)
    if error:
        raise OSError(-error, os.strerror(-error))


def check_file(option: str, path: Path) -> None:
    """Raise the `UserError` of a `FlashFile` that would create *path*; create nothing."""
    directory = os.path.dirname(os.path.realpath(path))  # noqa: PTH120  (as open follows links)
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):  # noqa: PTH116
            raise _cannot_open(f"{option} {path}", errno.ENOTDIR, make=True)
    except OSError as error:
        raise _cannot_open(f"{option} {path}", error.errno, make=True) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise _cannot_open(f"{option} {path}", errno.EACCES, make=True)


def _cannot_open(file: str, number: int | None, *, make: bool) -> UserError:
    hint = "name a file that can be read"
    if make:
        hint = "name one that can be written, or add ,ro to have it read only"
    return UserError(f"{file}: {os.strerror(number or errno.EIO)}", hint)
