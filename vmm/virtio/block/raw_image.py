"""Open, lock and measure the file or block device behind a disk."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import UserError
from vmm.image_lock import lock_image, unlock_image
from vmm.virtio.block.registers import SECTOR

if TYPE_CHECKING:
    from pathlib import Path


class CacheMode(NamedTuple):
    """What caches a disk's writes.

    direct         bypass the host's page cache with O_DIRECT
    write_through  each write is durable when it completes
    unsafe         flushes are ignored: a crash of the host loses data
    """

    direct: bool = False
    write_through: bool = False
    unsafe: bool = False


WRITE_BACK: Final = CacheMode()
"""Writes stay in the host's page cache until a flush."""

CACHE_MODES: Final = {
    "auto": WRITE_BACK,
    "writeback": WRITE_BACK,
    "writethrough": CacheMode(write_through=True),
    "none": CacheMode(direct=True),
    "directsync": CacheMode(direct=True, write_through=True),
    "unsafe": CacheMode(unsafe=True),
}
"""The words of ``cache=``, as QEMU defines them."""


class Alignment(NamedTuple):
    """Alignment that O_DIRECT needs, in bytes.

    memory  of buffers' addresses
    offset  of offsets and lengths in the file
    """

    memory: int = 4096
    offset: int = 4096


class RawDisk(Closeable):
    """Own a raw image. Raises `UserError`, which names *option*, for anything else.

    The image is locked with flock: exclusive for a writer, shared for readers. Not with *locked*
    false: a machine that comes from elsewhere locks it when its old host has unlocked it.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool,
        option: str,
        cache: CacheMode = WRITE_BACK,
        locked: bool = True,
    ) -> None:
        self.read_only = read_only
        self.cache = cache
        self.alignment = Alignment()
        self.option = option
        self._direct = -1
        try:
            self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
        except OSError as error:
            remedy = "add ,ro to read it only" if error.errno in (errno.EACCES, errno.EROFS) else ""
            raise UserError(
                f"{option}: {error.strerror}", remedy or "name a raw disk image or block device"
            ) from error
        try:
            self.sectors = self._measure()
            if locked:
                self.lock()
            if cache.direct:
                self._open_direct()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> int:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UserError(
                f"{self.option}: neither a file nor a block device", "name a raw disk image"
            )
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size == 0 or size % SECTOR:
            raise UserError(
                f"{self.option}: its {size} bytes are not one or more sectors of {SECTOR}",
                "make it so with truncate -s",
            )
        return size // SECTOR

    def _open_direct(self) -> None:
        """Open the same file again with O_DIRECT."""
        mode = os.O_RDONLY if self.read_only else os.O_RDWR
        try:
            # Not by its path, which may name another file by now.
            self._direct = os.open(f"/proc/self/fd/{self._fd}", mode | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            raise UserError(
                f"{self.option}: it cannot be used past the page cache: {error.strerror}",
                "leave cache=none or cache=directsync out, or put it on another file system",
            ) from error
        memory, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        if lib.pyvmm_blk_alignment(self._direct, memory, offset) == 0:
            self.alignment = Alignment(int(memory[0]), int(offset[0]))

    def lock(self) -> None:
        """Lock the image. Raises `UserError` if another machine has it."""
        lock_image(self._fd, self.option, read_only=self.read_only)

    def unlock(self) -> None:
        """Let another machine have the image."""
        unlock_image(self._fd)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def direct_fileno(self) -> int:
        """Return the descriptor that bypasses the host's page cache; -1 if there is none."""
        return self._direct

    def close(self) -> None:
        """Close the image, which unlocks it. Idempotent."""
        fd, self._fd = self._fd, -1
        direct, self._direct = self._direct, -1
        for each in (direct, fd):
            if each >= 0:
                os.close(each)
