"""A Debian kernel source package, unpacked once and patched in place.

One tree serves all kernels of one version of the source, so make rebuilds only what the difference
between their patches touches. Any step may be interrupted: the next run continues.

    cache/kernel/<package>_<version>/source/     the unpacked tree, patched for the last build
                                     pristine/   Debian's text of every file ever patched
                                     build/      objects
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote

from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.command import NO_SPACE, complaint, missing, run
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_ROOM = 2 << 30
"""Bytes that must be free for a tree and its objects; 1.4 GiB were measured."""

_FULL = 1 << 20
"""A disk with fewer bytes free counts as full."""

_UNWANTED = (
    "*/Documentation/devicetree",
    "*/Documentation/translations",
    "*/drivers/gpu/drm/*.[ch]",
    "*/tools/perf",
    "*/tools/testing",
)
"""Two fifths of the tree, which no build of ours opens; all Kconfig files and Makefiles stay."""

_TOUCHED = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class SourceTree:
    """The tree in the package *deb* (``linux-source-X.Y_VERSION_all.deb``)."""

    deb: Path

    @property
    def version(self) -> str:
        """Package and version, as in ``linux-source-7.3_7.3.4-1~bpo13+1``."""
        return unquote(self.deb.name).removesuffix(".deb").removesuffix("_all")

    @property
    def root(self) -> Path:
        """The directory of everything that belongs to this tree."""
        return cache.root() / "kernel" / self.version

    @property
    def source(self) -> Path:
        """The tree itself; not there before `unpack`."""
        return self.root / "source"

    @property
    def build(self) -> Path:
        """The directory for objects."""
        return self.root / "build"

    def unpack(self) -> None:
        """Unpack the tree unless it exists. Raises HostError: not enough room, tools missing."""
        if self.source.exists():
            return
        with cache.writing("a kernel's source"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if free < _ROOM:
            raise HostError(
                f"building a kernel takes {_ROOM >> 30} GiB in {cache.root()}, "
                f"of which {free / (1 << 30):.1f} are free",
                "free some, or set XDG_CACHE_HOME to a roomier place",
            )
        with step(f"unpacking {self.version}", self.deb.stat().st_size) as reach:

            def extract(temporary: Path) -> None:
                temporary.mkdir()
                _extract(self.deb, temporary, self.root / "unpack.log", reach)

            cache.entry(self.source, extract)

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Keep other builders out. Yield a descriptor; the lock lasts while any process has it.

        make inherits it: if we are killed, the next builder waits until our make has ended.
        """
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def patch(self, patches: Sequence[Path]) -> None:
        """Make the tree Debian's with exactly *patches* applied, and write only files that differ.

        make goes by modification times, so a file keeps its own unless its content changes. Patches
        can change files, not add or remove them. Raises HostError if one doesn't apply.
        """
        pristine = self.root / "pristine"
        with cache.writing("a patched kernel source"):
            touched = {name for patch in patches for name in _TOUCHED.findall(patch.read_text())}
            for name in touched:
                if not (pristine / name).exists():  # so the tree still has Debian's
                    _replace(pristine / name, self._debian(name, patches))
            with tempfile.TemporaryDirectory(prefix=".patch-", dir=self.root) as directory:
                scratch = Path(directory)
                before = [
                    path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file()
                ]
                for path in before:
                    _replace(scratch / path, (pristine / path).read_bytes())
                for patch in patches:
                    self._apply(patch, scratch)
                for path in before:
                    wanted = (scratch / path).read_bytes()
                    if (self.source / path).read_bytes() != wanted:
                        _replace(self.source / path, wanted)

    def _debian(self, name: str, patches: Sequence[Path]) -> bytes:
        try:
            return (self.source / name).read_bytes()
        except FileNotFoundError as error:
            names = ", ".join(patch.name for patch in patches)
            raise HostError(
                f"{self.version} has no {name}, which {names} would change",
                "the patch needs porting to this kernel",
            ) from error

    def _apply(self, patch: Path, directory: Path) -> None:
        try:
            run(
                ["patch", "-p1", "--silent", "--batch", "--no-backup-if-mismatch"],
                stdin=patch.read_bytes(),
                cwd=directory,
            )
        except HostError as error:
            if "is not installed" in error.message or NO_SPACE in error.message:
                raise
            raise HostError(
                f"{patch.name} doesn't apply to {self.version}",
                "the patch needs porting to this kernel",
            ) from error


def _replace(path: Path, data: bytes) -> None:
    """Write *path* in one step, so that an interruption leaves the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.pyvmm")
    temporary.write_bytes(data)
    temporary.replace(path)


def _extract(deb: Path, into: Path, log: Path, reach: Callable[[float], None]) -> None:
    """Unpack the source archive in the package *deb*; *reach* gets the bytes of *deb* done."""
    exclude = [f"--exclude={pattern}" for pattern in _UNWANTED]
    with ExitStack() as stack:
        # Messages go to a file: a full disk makes one for each of 80,000 files.
        stderr = stack.enter_context(log.open("wb"))

        def start(*argv: str, stdin: IO[bytes] | int | None = None) -> subprocess.Popen[bytes]:
            try:
                process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)
            except FileNotFoundError as error:
                raise missing(argv[0]) from error
            return stack.enter_context(process)

        members = start("dpkg-deb", "--fsys-tarfile", str(deb))
        archive = start(
            "tar", "-xO", "--wildcards", "*/linux-source-*.tar.xz", stdin=members.stdout
        )
        tree = start(
            "tar", "-xJ", "--strip-components=1", *exclude, "-C", str(into), stdin=subprocess.PIPE
        )
        assert members.stdout
        assert archive.stdout
        assert tree.stdin
        members.stdout.close()  # so that dpkg-deb notices if the first tar ends
        done = 0
        try:
            while chunk := archive.stdout.read(1 << 20):
                tree.stdin.write(chunk)
                reach(done := done + len(chunk))
            tree.stdin.close()
        except BrokenPipeError:
            archive.stdout.close()  # why the second tar ended is in the log
        failed = [process.args for process in (tree, archive, members) if process.wait()]
    if failed:
        text = log.read_text(errors="replace")
        # On a full disk there is no room for the message either.
        if NO_SPACE in text or shutil.disk_usage(into).free < _FULL:
            raise OSError(errno.ENOSPC, NO_SPACE)
        raise HostError(f"can't unpack {deb.name}: {complaint(text)}")
