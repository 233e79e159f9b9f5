"""A file mapped as guest memory, for a virtio-pmem device."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import TYPE_CHECKING, Final

from vmm import sigbus
from vmm._native import lib
from vmm.closeable import Closeable
from vmm.errors import HostError, UserError
from vmm.image_lock import lock_image
from vmm.memory import Backing, Region

if TYPE_CHECKING:
    from vmm.config.pmem import PmemConfig

ALIGNMENT: Final = 2 << 20
"""Bytes: Linux hot-plugs persistent memory in such units (SUBSECTION_SIZE); a level 2 block."""


class PmemFile(Closeable):
    """Own the file that *config* names, and a mapping of it. Use as a context manager.

    The file is locked (`vmm.image_lock`), and has all its blocks before the guest runs: a full file
    system could not be told to a store. What it loses all the same is in `vmm.sigbus`. Raises
    `UserError`, which names the option, and `HostError`.
    """

    def __init__(self, config: PmemConfig) -> None:
        self.option = config.option
        self._is_lent = config.mapped is not None
        self._fd = -1
        self.base = 0
        """Guest physical address; set by whoever places the file."""
        self.read_only = config.read_only
        self.allocated = True
        """Whether the file has room for all that may be written; False: nobody knows."""
        flags = os.O_CLOEXEC | (os.O_RDONLY if config.read_only else os.O_RDWR)
        if config.size and not config.read_only:
            flags |= os.O_CREAT
        try:
            self._fd = os.open(config.mapped or config.path, flags, 0o666)
        except OSError as error:
            raise UserError(
                f"{self.option}: {error.strerror}",
                "name a file, or say size=SIZE to have one made; add ,ro to read it only",
            ) from error
        try:
            lock_image(self._fd, self.option, read_only=self.read_only)
            self.size = self._measure(config.size)
            self._allocate()
            self._map()
        except BaseException:
            self._close_file()
            raise

    def _measure(self, wanted: int) -> int:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UserError(f"{self.option}: neither a file nor a block device", "name a file")
        size = self._size_before = os.lseek(self._fd, 0, os.SEEK_END)
        if wanted > size and stat.S_ISREG(mode) and not self.read_only:
            if wanted % ALIGNMENT == 0:
                self._extend(wanted)
            size = wanted
        if wanted > size:
            raise UserError(
                f"{self.option}: it has {size} bytes, and size={wanted} is more",
                "use less, or make it larger",
            )
        size = wanted or size
        if not size or size % ALIGNMENT:
            raise UserError(
                f"{self.option}: {size} bytes are not one or more times {ALIGNMENT >> 20} MiB",
                f"say size=SIZE, or make it so with truncate -s %{ALIGNMENT >> 20}M",
            )
        return size

    def _allocate(self) -> None:
        """Let the file have its blocks now, unless it is a block device or is only read."""
        about = os.fstat(self._fd)
        if self.read_only or not stat.S_ISREG(about.st_mode):
            return
        error = -lib.pyvmm_allocate(self._fd, self.size)
        if error in {errno.EOPNOTSUPP, errno.ENOSYS}:
            self.allocated = about.st_blocks * 512 >= self.size
        elif error:
            os.ftruncate(self._fd, self._size_before)
            raise HostError(
                f"{self.option}: cannot allocate its {self.size >> 20} MiB: {os.strerror(error)}",
                "make room on its file system, or use less",
            )

    def _extend(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise UserError(
                f"{self.option}: cannot make it {size} bytes: {error.strerror}", "use less"
            ) from error

    def _map(self) -> None:
        # The guest cannot write a read-only slot, but it can tell devices to (DMA). That lands in
        # private pages, and the file stays as it is.
        flags = mmap.MAP_PRIVATE if self.read_only else mmap.MAP_SHARED
        try:
            self._mapping = mmap.mmap(
                self._fd, self.size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        except (OSError, OverflowError, ValueError) as error:
            hint = "raise the limit on address space (ulimit -v)"
            if isinstance(error, OSError) and error.errno in {errno.EINVAL, errno.ENODEV}:
                hint = (
                    "its file system has no shared mappings: use ,ro or a file elsewhere; in a lab "
                    "host the files of the outside can be mapped below /run/mapped"
                )
            raise HostError(
                f"{self.option}: cannot map its {self.size >> 20} MiB: {error}", hint
            ) from error
        self._view = memoryview(self._mapping)
        self._watched = sigbus.Watched(self.option, self.region().host_address, self.size)

    @property
    def is_dax(self) -> bool | None:
        """Whether it is mapped from persistent memory directly: see `vmm.coherence.dax`.

        None: the kernel does not tell.
        """
        told = lib.pyvmm_is_dax(self._fd)
        return None if told < 0 else bool(told)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def region(self) -> Region:
        """Return the mapping as a region of guest memory at `base`."""
        fd = -1 if self.read_only else self._fd
        return Region(self.base, self._view, Backing.FILE, fd, read_only=self.read_only)

    def loss(self) -> sigbus.LostError | None:
        """Return the error if the file is shorter than its mapping by now."""
        size = os.lseek(self._fd, 0, os.SEEK_END)
        return sigbus.LostError(self.option, size) if size < self.size else None

    def sync(self) -> None:
        """Make what was written durable (fdatasync(2)). Thread-safe. Raises OSError."""
        if not self.read_only:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Unmap the file and unlock it; no memory slot may refer to it. Idempotent.

        A file of the outside is written first: a lab host can end with this process, and what is
        in its page cache with it. Raises `HostError`: that failed.
        """
        try:
            if self._is_lent and self._fd >= 0:
                self.sync()
        except OSError as error:
            raise HostError(
                f"{self.option}: not all of the guest's writes are in it: {error.strerror}"
            ) from error
        finally:
            self._watched.close()
            self._view.release()
            self._mapping.close()
            self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
