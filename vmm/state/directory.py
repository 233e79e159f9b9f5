"""A snapshot's directory: it has one whole snapshot, or none, whenever its writer dies.

    memory.N             guest RAM, written and made durable first
    manifest.json.new    then the manifest, made durable
    manifest.json        its name, by rename(2): from here on this is the snapshot
                         then the memory of the one before is removed

The directory is opened once, for the broker: a sealed process creates and renames no file itself
(`vmm.broker.errands.Files`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from vmm import broker
from vmm.errors import HostError, UserError
from vmm.state.manifest import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEMORY: Final = "memory."
NEW: Final = f"{NAME}.new"
PATTERN: Final = r"memory\.[0-9]{1,9}|manifest\.json(\.new)?"
"""Names of all files of a snapshot."""


class SnapshotDirectory:
    """The directory *path*, which is made if it does not exist. Raises `UserError`.

    The broker must not be frozen yet.
    """

    def __init__(self, path: Path) -> None:
        self._what = f"--snapshot {path}"
        try:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied")
                self._broker = broker.current()
                self._files = self._broker.offer("files", PATTERN, fds=[directory])
            finally:
                os.close(directory)
        except OSError as error:
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
            memory = self._create(name)
            kept = False

            def commit(text: str) -> None:
                nonlocal kept
                self._write_manifest(text)
                self._do("rename", NEW, NAME)
                kept = True  # whatever fails from here on: the manifest names it
                self._do("sync")
                self._forget_others(name)

            try:
                yield name, memory, commit
            finally:
                os.close(memory)
                if not kept:
                    with suppress(OSError, HostError):
                        self._do("remove", name)
        except OSError as error:
            raise HostError(f"{self._what}: {error.strerror}", "free some space") from error

    def _do(self, step: str, *names: str) -> None:
        self._broker.do(self._files, step, *names)

    def _create(self, name: str) -> int:
        _, (fd,) = self._broker.do(self._files, "create", name)
        return fd

    def _memories(self) -> list[str]:
        names, _ = self._broker.do(self._files, "names")
        return [name for name in names if name.startswith(MEMORY)]

    def _next(self) -> str:
        numbers = [int(name.removeprefix(MEMORY)) for name in self._memories()]
        return f"{MEMORY}{max(numbers, default=0) + 1}"

    def _write_manifest(self, text: str) -> None:
        with suppress(FileNotFoundError):
            self._do("remove", NEW)
        with os.fdopen(self._create(NEW), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._do("sync")  # the memory's name

    def _forget_others(self, name: str) -> None:
        for other in self._memories():
            if other != name:
                with suppress(OSError):
                    self._do("remove", other)
