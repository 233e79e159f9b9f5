"""The lab's cache: entries that are built once, whole or not at all.

An entry is a file or a directory below ``$XDG_CACHE_HOME/pyvmm``. It is built beside its place and
renamed into it, so that a crash or a full disk leaves no half entry. The next builder removes what
a crashed one left. Any number of processes may use the cache at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

built: list[Path] = []
"""Entries that this process has built: the cache may have become too large."""

_YOUNG = 3600.0
"""Seconds for which an entry is spared from pruning."""


def root() -> Path:
    """Return the cache directory, which may not exist yet.

    What is in it is run: programs, kernels, the images of hosts. Raises `HostError` if it belongs
    to somebody else, or if others may write it.
    """
    path = _place()
    try:
        about = path.stat()
    except OSError:
        return path
    if about.st_uid not in (os.geteuid(), 0):
        raise HostError(f"{path}: it belongs to another user", "set XDG_CACHE_HOME to your own")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HostError(
            f"{path}: others can write it, and pyvmm runs what is there",
            f"if they have not: chmod go-w {path}; or set XDG_CACHE_HOME to another place",
        )
    return path


def _place() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path must be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pyvmm"


def digest(*parts: object) -> str:
    """Return a hash of *parts* (16 hexadecimal digits), for the name of an entry.

    What JSON does not know is hashed as its `str`.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn OSError into a HostError that says that *what* was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise HostError(
                f"no space left in {root()} while writing {what}",
                "free some, or set XDG_CACHE_HOME to a roomier place, and try again",
            ) from error
        raise HostError(
            f"{root()}: can't write {what}: {error.strerror or error}",
            "XDG_CACHE_HOME chooses another place",
        ) from error


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the cache's lock *name*, with flock: released even by SIGKILL."""
    with writing("a lock"):
        directory = root() / "locks"
        for each in (directory.parent, directory):  # each with the mode
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove the file or directory *path* if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def used(path: Path) -> None:
    """Record that the entry which has *path* is used now, for who removes the longest unused.

    What counts is the time of the inode's last change. A package's time of modification is the
    mirror's.
    """
    kind = path.relative_to(root()).parts[0]
    with contextlib.suppress(OSError):  # a cache that can be read will do
        while path.parent != root():
            if path.name != kind:
                os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            path = path.parent


def entry(path: Path, build: Callable[[Path], None]) -> Path:
    """Return *path*; if it does not exist, let ``build(temporary)`` make it first.

    *build* makes a file or a directory at the path that it is given. Raises HostError if the disk
    is full or not writable, and whatever *build* raises.
    """
    if path.exists():
        used(path)
        return path
    with lock("-".join(path.relative_to(root()).parts)):
        if path.exists():  # another process was faster
            return path
        temporary = path.with_name(f".{path.name}.partial")
        with writing(path.name):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove(temporary)  # left by a builder that was killed
            try:
                build(temporary)
                temporary.rename(path)
                built.append(path)
            except BaseException:
                remove(temporary)
                raise
    return path


@contextlib.contextmanager
def scratch(temporary: Path, name: str) -> Iterator[Path]:
    """Give the builder of *temporary* another path beside it; remove what is there afterwards."""
    path = temporary.with_suffix(f".{name}")
    remove(path)  # left by a builder that was killed
    try:
        yield path
    finally:
        remove(path)


def prune(directory: Path, pattern: str, keep: int) -> None:
    """Remove all but the *keep* youngest entries in *directory* that match *pattern*.

    An entry younger than an hour stays: another process may be about to use it.
    """
    found = sorted(directory.glob(pattern), key=lambda path: path.stat().st_mtime)
    for path in found[:-keep]:
        if time.time() - path.stat().st_mtime > _YOUNG:
            remove(path)


def read_json(path: Path) -> dict[str, object]:
    """Return the object in the JSON file *path*; an empty one if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: object) -> None:
    """Replace *path* by *value* as JSON, in one step. Only the owner can read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path.name):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(value, file, indent=1, sort_keys=True)
                file.write("\n")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
