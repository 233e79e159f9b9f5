"""The file or block device behind a disk: opened, locked, measured."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.closing import Closing
from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

SECTOR: Final = 512
"""Bytes, whatever the block size (5.2.4)."""

FORMATS: Final = {b"QFI\xfb": "qcow2", b"KDMV": "VMDK", b"vhdxfile": "VHDX", b"conectix": "VHD"}
"""What a file begins with that is no raw image: a guest would see the format, not the disk."""


class RawDisk(Closing):
    """Owns a raw image. Raises `UserError`, which names *option*, for what is none.

    A disk that can be written is locked (flock), against a second machine that writes it.
    """

    def __init__(self, path: Path, *, read_only: bool, option: str) -> None:
        self.read_only = read_only
        self._option = option
        try:
            self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
        except OSError as error:
            remedy = "add ,ro to read it only" if error.errno in (errno.EACCES, errno.EROFS) else ""
            raise UserError(
                f"{option}: {error.strerror}", remedy or "name a raw disk image or block device"
            ) from error
        try:
            self.sectors = self._measure()
            self._lock()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> int:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UserError(
                f"{self._option}: neither a file nor a block device", "name a raw disk image"
            )
        start = os.pread(self._fd, 8, 0)
        for magic, name in FORMATS.items():
            if start.startswith(magic):
                raise UserError(
                    f"{self._option}: a {name} image, and only raw ones can be used",
                    f"convert it: qemu-img convert -O raw FILE.{name.lower()} FILE.raw",
                )
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size == 0 or size % SECTOR:
            raise UserError(
                f"{self._option}: its {size} bytes are not one or more sectors of {SECTOR}",
                "make it so with truncate -s",
            )
        return size // SECTOR

    def _lock(self) -> None:
        kind = fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
        with suppress(OSError):  # some file systems have no locks
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self._option}: another machine uses it",
                    "end that one, or give both the disk with ,ro",
                ) from error

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close it, which unlocks. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
