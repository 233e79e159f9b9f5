"""Write cpio archives in the "newc" format, which the kernel unpacks as its initial file system.

The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: an ASCII
header of thirteen eight-digit hexadecimal numbers, the name, the data; each padded to 4 bytes.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable

_TRAILER = "TRAILER!!!"


def concatenate(archives: Iterable[Path], file: BinaryIO) -> None:
    """Write *archives* to *file*, one after the other: the kernel unpacks them in that order."""
    for path in archives:
        with path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)


class CpioWriter:
    """One archive that is written to *file*. Everything in it belongs to root; `close` ends it.

    Parent directories must be added before what is in them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0

    def _entry(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device, device of a device node, name, check
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + "".join(f"{number:08x}" for number in numbers).encode()
        for part in (header + encoded, data):
            self._file.write(part)
            self._file.write(bytes(-len(part) % 4))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link to *target*."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def tree(self, root: Path, under: str = "") -> None:
        """Add the contents of the directory *root*, with names relative to it, below *under*."""
        prefix = f"{under}/" if under else ""
        for directory, subdirectories, files in os.walk(root):
            subdirectories.sort()
            for name in sorted([*subdirectories, *files]):
                path = Path(directory) / name
                inside = prefix + path.relative_to(root).as_posix()
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    self.symlink(inside, str(path.readlink()))
                elif stat.S_ISDIR(mode):
                    self.directory(inside, stat.S_IMODE(mode))
                elif stat.S_ISREG(mode):
                    self.file(inside, path.read_bytes(), stat.S_IMODE(mode))

    def close(self) -> None:
        """Write the entry that ends an archive."""
        self._entry(_TRAILER, 0)
