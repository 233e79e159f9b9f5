"""A snapshot's directory: it has one whole snapshot, or none, whenever its writer dies.

    memory.N             guest RAM, written and made durable first
    manifest.json.new    then the manifest, made durable
    manifest.json        its name, by rename(2): from here on this is the snapshot
                         then the memory of the one before is removed

The directory is opened once; all names are relative to it (openat(2)), so that it can be written
from a sealed process.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError, UserError
from vmm.fd import Fd
from vmm.state.manifest import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEMORY: Final = re.compile(r"memory\.([0-9]{1,9})")
NEW: Final = f"{NAME}.new"
CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC


class SnapshotDirectory(Fd):
    """Own the open directory *path*, which is made if it does not exist. Raises `UserError`."""

    def __init__(self, path: Path) -> None:
        super().__init__(-1)
        self._what = f"--snapshot {path}"
        try:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            self.close()
            raise UserError(
                f"{self._what}: {error.strerror}", "name a directory that you can write"
            ) from error

    @contextmanager
    def replace(self) -> Iterator[tuple[str, int, Callable[[str], None]]]:
        """Write another snapshot: yield a name and a descriptor for its memory, and ``commit``.

        The caller writes the memory, then calls ``commit`` with the manifest's text. What is not
        committed is removed. Raises `HostError`: the disk is full, for instance.
        """
        try:
            name = self._next()
            memory = os.open(name, CREATE, 0o600, dir_fd=self._fd)
            kept = False

            def commit(text: str) -> None:
                nonlocal kept
                self._write_manifest(text)
                os.rename(NEW, NAME, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                kept = True  # whatever fails from here on: the manifest names it
                os.fsync(self._fd)
                self._forget_others(name)

            try:
                yield name, memory, commit
            finally:
                os.close(memory)
                if not kept:
                    with suppress(OSError):
                        os.unlink(name, dir_fd=self._fd)
        except OSError as error:
            raise HostError(f"{self._what}: {error.strerror}", "free some space") from error

    def _memories(self) -> list[str]:
        return [name for name in os.listdir(self._fd) if MEMORY.fullmatch(name)]  # noqa: PTH208  (a descriptor)

    def _next(self) -> str:
        numbers = [int(name.partition(".")[2]) for name in self._memories()]
        return f"memory.{max(numbers, default=0) + 1}"

    def _write_manifest(self, text: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(NEW, dir_fd=self._fd)
        fd = os.open(NEW, CREATE, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.fsync(self._fd)  # the memory's name

    def _forget_others(self, name: str) -> None:
        for other in self._memories():
            if other != name:
                with suppress(OSError):
                    os.unlink(other, dir_fd=self._fd)
