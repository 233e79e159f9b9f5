"""Remove what the cache has and nobody uses: `pyvmm lab clean`, and a bound that keeps itself.

An entry is as old as its last use, which `cache.used` records as the time of its inode's last
change. Three kinds of entries stay however old they are: those that a process of this user has
open, has mapped or names in its command line, as QEMU does; packages for hosts, while a host runs;
and those used in the last ten minutes, which a process may have been given and not opened yet.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.lab import cache
from vmm.lab.host import state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DAY: Final = 24 * 3600.0
OLD: Final = 30.0
"""Days after which `pyvmm lab clean` removes an entry that was not used."""
BOUND: Final = 10 << 30
"""Bytes of the cache above which building an entry removes old ones."""
BOUND_SPARES: Final = 7.0
"""Days for which the bound spares an entry."""

_HANDED_OUT: Final = 600.0
"""Seconds for which an entry may be in use though no process shows it."""
_KEPT: Final = {"apt", "locks"}
"""Directories whose files are no entries: indexes, and which request resolved to what."""
_LINKED: Final = "tools/host-"
"""Packages that hosts have links to: no process on this machine shows that."""


@dataclass(frozen=True)
class Entry:
    """One entry of the cache: a file or a directory that is removed as a whole."""

    path: Path
    size: int
    """Bytes on the disk."""
    used: float
    """Seconds since the epoch."""

    @property
    def kind(self) -> str:
        """The directory of the cache that it is in."""
        return self.path.relative_to(cache.root()).parts[0]


def entries() -> Iterator[Entry]:
    """Yield each entry, including unfinished ones of builders that were killed."""
    for directory in _directories():
        for path in sorted(directory.iterdir()):
            if path.parent.name == "kernel" and path.name == "images":
                continue
            try:
                yield Entry(path, _size(path), path.lstat().st_ctime)
            except FileNotFoundError:  # removed by another process meanwhile
                continue


def _directories() -> Iterator[Path]:
    root = cache.root()
    found = sorted(root.iterdir()) if root.is_dir() else []
    for directory in [*found, root / "kernel" / "images"]:
        if directory.is_dir() and directory.name not in _KEPT:
            yield directory


def _size(path: Path) -> int:
    blocks = path.lstat().st_blocks
    for *_, fd in os.fwalk(path) if path.is_dir() else ():
        with os.scandir(fd) as found:
            blocks += sum(each.stat(follow_symlinks=False).st_blocks for each in found)
    return blocks * 512


def shown() -> str:
    """Return all that processes of this user show of the files that they use."""
    texts = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        for name in ("cmdline", "maps"):
            try:
                text = (process / name).read_bytes().replace(b"\0", b"\n")
                texts.append(text.decode(errors="replace"))
            except OSError:  # ended, or another user's
                continue
        try:
            links = [process / "cwd", process / "exe", *(process / "fd").iterdir()]
        except OSError:
            continue
        for link in links:
            try:
                texts.append(str(link.readlink()))
            except OSError:
                continue
    return "\n".join(texts)


def _in_use(entry: Entry, processes: str, *, hosts: bool) -> bool:
    if hosts and str(entry.path.relative_to(cache.root())).startswith(_LINKED):
        return True
    name = str(entry.path)
    return any(
        processes[at + len(name) : at + len(name) + 1] in {"", "/", "\n", ",", " "}
        for at in _places(name, processes)
    )


def _places(name: str, text: str) -> Iterator[int]:
    at = text.find(name)
    while at >= 0:
        yield at
        at = text.find(name, at + 1)


def clean(
    older_than: float, *, now: float | None = None, most: int = 0
) -> tuple[list[Entry], list[Entry]]:
    """Remove entries that were not used for *older_than* seconds; return them and those that stay.

    The longest unused go first, until the cache has at most *most* bytes. *now* is the time that
    ages count from, in seconds since the epoch.
    """
    now = time.time() if now is None else now
    found = sorted(entries(), key=lambda entry: entry.used)
    total = sum(entry.size for entry in found)
    removed, stay = [], []
    processes = shown() if found else ""
    hosts = any(True for _ in state.hosts())
    for entry in found:
        age = now - entry.used
        if (
            total > most
            and age >= max(older_than, _HANDED_OUT)
            and not _in_use(entry, processes, hosts=hosts)
            and _remove(entry.path)
        ):
            removed.append(entry)
            total -= entry.size
        else:
            stay.append(entry)
    return removed, stay


def _remove(path: Path) -> bool:
    """Remove *path* unless a process builds it; return whether it is gone."""
    # A builder holds the entry's lock: see `cache.entry`.
    built = path.name
    if built.startswith("."):
        built = built[1:].partition(".partial")[0]
    name = "-".join(path.with_name(built).relative_to(cache.root()).parts)
    with cache.writing("a lock"):
        locks = cache.root() / "locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cache.remove(path)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return not path.exists()


def summary(removed: Iterable[Entry]) -> list[str]:
    """Return a line for each directory of the cache: what was removed, and how much it was."""
    kinds: dict[str, list[Entry]] = {}
    for entry in removed:
        kinds.setdefault(entry.kind, []).append(entry)
    return [f"{kind}: {counted(found)}" for kind, found in sorted(kinds.items())]


def counted(found: Sequence[Entry]) -> str:
    """Return how many entries there are, and how many bytes they have: ``2 entries, 1.5 GB``."""
    total = sum(entry.size for entry in found)
    size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
    return f"{len(found)} {'entry' if len(found) == 1 else 'entries'}, {size}"


def keep_bound() -> None:
    """Remove the longest unused entries if the cache is too large, and say so on stderr.

    Look only if this process has built an entry: looking takes a second.
    """
    if not cache.built:
        return
    cache.built.clear()
    removed, _ = clean(BOUND_SPARES * DAY, most=BOUND)
    if removed:
        sys.stderr.write(
            f"pyvmm: the cache had over {BOUND >> 30} GiB: removed "
            f"{counted(removed)}, not used for {BOUND_SPARES:g} days\n"
        )
