"""Errands: what the broker does for a sealed machine again and again.

What an errand may touch is fixed before `freeze`. A guest that has taken the machine over can send
the broker on the same errands, and on no others.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    Step = tuple[str | list[str] | None, list[int]]
    """The answer of a step, and descriptors for the machine, which are then closed."""

NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
KVM_DEBUGFS: Final = Path("/sys/kernel/debug/kvm")


class Files:
    """Files in the directory of one descriptor, whose names match *pattern* as a whole."""

    kind: ClassVar = "files"
    steps: ClassVar = frozenset({"names", "create", "rename", "remove", "sync"})

    def __init__(self, fds: Sequence[int], pattern: str) -> None:
        (directory,) = fds
        self._pattern = re.compile(pattern)
        self._fd = os.dup(directory)

    def _checked(self, name: str) -> str:
        if "/" in name or not self._pattern.fullmatch(name):
            raise PermissionError(errno.EPERM, "that file is none of the machine's")
        return name

    def names(self) -> Step:
        """Return the names of the files that are there."""
        found = os.listdir(self._fd)  # noqa: PTH208  (a descriptor)
        return [name for name in found if self._pattern.fullmatch(name)], []

    def create(self, name: str) -> Step:
        """Create a file with mode 0600, for reading and writing. Raises OSError: it exists."""
        return None, [os.open(self._checked(name), NEW_FILE, 0o600, dir_fd=self._fd)]

    def rename(self, old: str, new: str) -> Step:
        """Give a file another name, which no other file keeps."""
        names = self._checked(old), self._checked(new)
        os.rename(*names, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return None, []

    def remove(self, name: str) -> Step:
        """Remove a file."""
        os.unlink(self._checked(name), dir_fd=self._fd)
        return None, []

    def sync(self) -> Step:
        """Make the directory durable: its files' names, not their contents."""
        os.fsync(self._fd)
        return None, []


class Stage2:
    """The kernel's dumps of the stage-2 tables of the machine's VMs (arch/arm64/kvm/ptdump.c)."""

    kind: ClassVar = "stage2"
    steps: ClassVar = frozenset({"open"})

    def __init__(self, _fds: Sequence[int]) -> None:
        self._machine = os.getppid()

    def open(self, vm: int) -> Step:
        """Open the dump of the VM that has descriptor *vm* in the machine's process, to read it."""
        path = KVM_DEBUGFS / f"{self._machine}-{int(vm)}" / "stage2_page_tables"
        return None, [os.open(path, os.O_RDONLY | os.O_CLOEXEC)]


Errand = Files | Stage2
KINDS: Final[dict[str, type[Files | Stage2]]] = {each.kind: each for each in (Files, Stage2)}
