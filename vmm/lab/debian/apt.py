"""Debian packages of any release and architecture, fetched and verified by the machine's own apt.

apt runs with a configuration of its own: lists, cache and sources are in the lab's cache, and the
system's are not touched. The sources name the mirror that the machine's apt uses; the machine's
Debian keyring verifies it. What a request resolved to is recorded, so that the same request needs
no network again. Versions are what the mirror offered when a request was made first.

    cache/apt/<release>-<arch>/    one private apt: sources.list, apt.conf, lists/
    cache/apt/resolved.json        request -> files in cache/debs/
    cache/debs/                    the packages
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vmm import thread
from vmm.errors import HostError, UserError
from vmm.lab import cache
from vmm.lab.command import NO_SPACE, complaint, missing, run
from vmm.lab.debian.aptsources import Mirror, find_mirror, keyring, newer_keyring
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

RELEASES = ("bookworm", "trixie")
ARCHITECTURES = ("amd64", "arm64")

_STALE_AFTER = 24 * 3600
"""Seconds after which an index that lacks a package is downloaded again."""

_PATIENCE = 60.0
"""Seconds without progress after which apt is ended: with a full disk it tries for minutes."""
_INDEX_ROOM = 96 << 20
"""Free bytes that an update needs: an index, beside the former one, and apt's own caches."""
_SPARE = 16 << 20
"""Free bytes that a download leaves."""

_UNREACHABLE = re.compile(
    r"resolv|[Cc]ould not connect|[Uu]nable to connect|[Cc]onnection (failed|timed out|refused)"
    r"|unreachable|[Tt]imed? ?out"
)
_UNSIGNED = re.compile(r"NO_PUBKEY|is not signed|not available|couldn't be verified|GPG error")
_GONE = re.compile(r"\b404\b|Hash Sum mismatch|unexpected size")
_UNKNOWN = re.compile(r"Unable to locate package|Couldn't find any package|no installation cand")

_CONFIGURATION = """\
#clear APT::Architectures;
#clear APT::Update;
#clear DPkg::Post-Invoke;
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Retries "2";
Dir::Cache "{root}/cache";
Dir::Cache::archives "{root}/archives";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{root}/empty";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "{root}/empty";
Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
"""
# The system's apt.conf is read before this one: a proxy that is set there stays set.


class _AptError(HostError):
    """A failure of apt-get. *stderr* tells why."""

    def __init__(self, stderr: str) -> None:
        self.stderr = stderr
        line = complaint(stderr).removeprefix("E: ")
        if NO_SPACE in stderr or "enough free space" in stderr:
            super().__init__(
                f"no space left in {cache.root()} while apt was downloading",
                "free some, or set XDG_CACHE_HOME to a roomier place, and try again",
            )
        elif _UNSIGNED.search(stderr):
            super().__init__(
                f"apt can't verify the package mirror: {line}",
                "install a current debian-archive-keyring",
            )
        elif _UNREACHABLE.search(stderr):
            super().__init__(
                f"apt can't reach the package mirror: {line}",
                "the lab downloads Debian packages once; check the network and apt's proxy",
            )
        else:
            super().__init__(f"apt-get failed: {line}")


class _Watchdog:
    """Kills *process* when `progress` was not called with another value for `_PATIENCE`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.ended = False
        """Whether the process was killed."""
        self._process = process
        self._done = -1.0
        self._last = time.monotonic()
        self._over = threading.Event()

    def progress(self, done: float) -> None:
        """Note how much is *done*, in percent. apt tells it over and over."""
        if done != self._done:
            self._done = done
            self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._thread = thread.start("apt-watchdog", self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while (left := self._last + _PATIENCE - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self.ended = True
        self._process.kill()


def _check_room(size: int, what: str) -> None:
    """Raise HostError unless the cache has room for *size* bytes."""
    with cache.writing(what):
        cache.root().mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(cache.root()).free
    if free < size:
        raise HostError(
            f"{what} takes {size >> 20} MiB in {cache.root()}, of which {free >> 20} are free",
            "free some (`pyvmm lab clean`), or set XDG_CACHE_HOME to a roomier place",
        )


@dataclass(frozen=True)
class Archive:
    """One release of Debian for one architecture, as a private apt sees it."""

    release: str
    arch: str

    @cached_property
    def root(self) -> Path:
        """The private apt's directory."""
        return cache.root() / "apt" / f"{self.release}-{self.arch}"

    def _configure(self, mirror: Mirror, keys: Path) -> None:
        with cache.writing("apt's configuration"):
            for name in ("lists/partial", "archives/partial", "cache", "empty"):
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.root / "status").touch()
            (self.root / "apt.conf").write_text(
                _CONFIGURATION.format(arch=self.arch, root=self.root)
            )
            options = f"[arch={self.arch} signed-by={keys}]"
            suites = [
                (mirror.debian, suite)
                for suite in (self.release, f"{self.release}-updates", f"{self.release}-backports")
            ]
            if mirror.security:
                suites.append((mirror.security, f"{self.release}-security"))
            (self.root / "sources.list").write_text(
                "".join(f"deb {options} {uri} {suite} main\n" for uri, suite in suites)
            )

    def update(self) -> None:
        """Download the indexes; if the machine's keyring is too old, with a newer one."""
        stamp = self.root / "updated"
        mirror = find_mirror()
        _check_room(_INDEX_ROOM, "the package index")
        self._configure(mirror, keyring())
        with step(f"downloading Debian {self.release}'s {self.arch} package index") as reach:
            try:
                self._get(["update"], reach)
            except _AptError as error:
                if not _UNSIGNED.search(error.stderr):
                    raise
                self._configure(mirror, newer_keyring())
                self._get(["update"], reach)
        stamp.touch()

    def ready(self) -> None:
        """Download the indexes unless there are some, however old."""
        if not (self.root / "updated").exists():
            self.update()

    @property
    def age(self) -> float:
        """The index's age in seconds."""
        return time.time() - (self.root / "updated").stat().st_mtime

    def apt(self, tool: str, *arguments: str) -> list[str]:
        """Return the command line of *tool* with this private configuration."""
        return [tool, f"-c={self.root / 'apt.conf'}", *arguments]

    def _get(
        self,
        arguments: Sequence[str],
        reach: Callable[[float], None] | None = None,
        cwd: Path | None = None,
    ) -> list[str]:
        """Run apt-get; return its lines of output. *reach* gets the percentage downloaded."""
        argv = ["env", "LC_ALL=C", *self.apt("apt-get", "-qq")]
        if reach:
            argv += ["-o", "APT::Status-Fd=1"]
        if shutil.which("apt-get") is None:
            raise missing("apt-get")
        lines = []
        with (
            tempfile.TemporaryFile("w+") as stderr,
            subprocess.Popen(
                [*argv, *arguments], text=True, stdout=subprocess.PIPE, stderr=stderr, cwd=cwd
            ) as process,
        ):
            with _Watchdog(process) as watchdog:
                assert process.stdout
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    if reach and line.startswith("dlstatus:"):
                        done = float(line.split(":")[2])
                        watchdog.progress(done)
                        reach(done)
                process.wait()
            if watchdog.ended:
                raise HostError(
                    f"apt made no progress for {_PATIENCE:g} s",
                    "check the network and apt's proxy, and that the disk is not full",
                )
            if process.returncode:
                stderr.seek(0)
                raise _AptError(stderr.read())
        return lines

    def resolve(self, packages: Sequence[str], target: str, *, closure: bool) -> list[str]:
        """Return the file names (``name_version_arch.deb``) of *packages* in suite *target*.

        With *closure*, also those of everything that they depend on.
        """
        arguments = [] if target == self.release else ["-t", target]
        arguments += ["--print-uris", *(["-y", "install"] if closure else ["download"])]
        lines = self._get([*arguments, *packages])
        return [line.split()[1] for line in lines if line.startswith("'")]

    def download(self, files: Sequence[str], label: str) -> None:
        """Download and verify those of *files* that cache/debs lacks.

        *label* names them in the progress bar.
        """
        wanted = [name for name in files if not (_pool() / name).exists()]
        if not wanted:
            return
        specs = []
        for name in wanted:
            package, version, _ = name.split("_")
            specs.append(f"{package}={unquote(version)}")
        with cache.writing("packages"):
            _pool().mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(prefix=".partial-", dir=_pool()) as partial,
                step(f"downloading {label} ({len(wanted)} {self.arch} packages)") as reach,
            ):
                uris = self._get(["--print-uris", "download", *specs], cwd=Path(partial))
                sizes = (int(line.split()[2]) for line in uris if line.startswith("'"))
                _check_room(sum(sizes) + _SPARE, label)
                self._get(["download", *specs], reach, Path(partial))
                for name in wanted:
                    (Path(partial) / name).replace(_pool() / name)


def _pool() -> Path:
    return cache.root() / "debs"


def _archive(suite: str, arch: str) -> Archive:
    release = suite.removesuffix("-backports")
    if release not in RELEASES or arch not in ARCHITECTURES:
        raise UserError(
            f"the lab knows no suite {suite} for {arch}",
            f"it knows {', '.join(RELEASES)}, their -backports, and {', '.join(ARCHITECTURES)}",
        )
    return Archive(release, arch)


def _record() -> Path:
    return cache.root() / "apt" / "resolved.json"


def _recorded(key: str) -> list[str] | None:
    entry = cache.read_json(_record()).get(key)
    if isinstance(entry, dict) and isinstance(files := entry.get("files"), list):
        return [str(name) for name in files]
    return None


def _remember(key: str, files: list[str]) -> None:
    """Record what *key* resolved to. The caller holds the lock "apt"."""
    value = cache.read_json(_record())
    value[key] = {"files": files, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    cache.write_json(_record(), value)


def fetch(packages: Sequence[str], *, suite: str, arch: str, closure: bool = False) -> list[Path]:
    """Return the .deb files of *packages* from *suite* (for instance "trixie-backports").

    With *closure*, also those of all that they depend on, but not of what they recommend. Only
    what the cache lacks is downloaded. Raises HostError: no network, no apt, disk full, not
    verifiable; UserError for a suite or an architecture that the lab does not know.
    """
    archive = _archive(suite, arch)
    key = f"{suite} {arch} {'closure ' if closure else ''}{' '.join(sorted(packages))}"

    def cached() -> list[Path] | None:
        paths = [_pool() / name for name in _recorded(key) or ()]
        if not paths or not all(path.exists() for path in paths):
            return None
        for path in paths:
            cache.used(path)
        return paths

    if paths := cached():
        return paths
    with cache.lock("apt"):
        if paths := cached():
            return paths
        archive.ready()
        try:
            files = archive.resolve(packages, suite, closure=closure)
            archive.download(files, packages[0])
        except _AptError as error:
            # The index is older than the mirror: ask again, once.
            outdated = _UNKNOWN.search(error.stderr) and archive.age > _STALE_AFTER
            if not outdated and not _GONE.search(error.stderr):
                raise
            archive.update()
            files = archive.resolve(packages, suite, closure=closure)
            archive.download(files, packages[0])
        _remember(key, files)
    return [_pool() / name for name in files]


def newest(pattern: str, *, suite: str, arch: str) -> str:
    """Return the name of the package that matches *pattern* and has the highest version numbers.

    For names with a version: ``newest("linux-binary-7.*-arm64", ...)``. *pattern* is a glob in
    which ``*`` matches no hyphen, so that flavours stay apart. Raises HostError.
    """
    archive = _archive(suite, arch)
    key = f"{suite} {arch} newest {pattern}"
    if names := _recorded(key):
        return names[0]
    with cache.lock("apt"):
        archive.ready()
        for attempt in range(2):
            names = run(archive.apt("apt-cache", "pkgnames")).split()
            found = [
                name
                for name in names
                if fnmatchcase(name, pattern) and name.count("-") == pattern.count("-")
            ]
            if found:
                best = max(found, key=_numbers)
                _remember(key, [best])
                return best
            if attempt == 0 and archive.age > _STALE_AFTER:
                archive.update()
    raise HostError(f"the mirror has no package {pattern} in {suite} for {arch}")


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def unpack(debs: Iterable[Path], into: Path) -> None:
    """Unpack the files of *debs* into the directory *into*. No maintainer script runs."""
    into.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        run(["dpkg-deb", "-x", str(deb), str(into)])


def forget() -> None:
    """Forget what requests resolved to: the next ones ask the mirror."""
    with cache.lock("apt"):
        for path in (cache.root() / "apt").glob("*/updated"):
            path.unlink()
        _record().unlink(missing_ok=True)
