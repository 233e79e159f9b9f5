"""What of this machine a lab host can write: the current directory, and the files that are named.

QEMU serves files from a mount namespace of its own (see `mounts`), where all is read-only but what
commands were started in or were given. So neither the lab host's kernel nor a QEMU that it has
broken writes elsewhere: QEMU has no capability to mount. It reads what the user can read.

A user who is not root gets the namespace with a user namespace. Where this machine gives neither,
one line says that the lab host can write what the user can.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import suppress
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.lab import cache, command
from vmm.run_directory import run_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CAPABILITIES: Final = ("chown", "dac_override", "dac_read_search", "fowner", "fsetid")
"""What serving files as root takes. Without the others nothing can be mounted."""
_PROGRAM: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("mounts.py")))


@once
def _namespaces() -> tuple[str, ...]:
    """Return the command that starts another in a mount namespace; none if that is not allowed."""
    user = ("--user", "--map-root-user") if os.geteuid() else ()
    argv = ("unshare", *user, "--mount", "--propagation", "slave")
    try:
        done = subprocess.run([*argv, "true"], check=False, capture_output=True)
    except FileNotFoundError:
        raise command.missing(argv[0]) from None
    return argv if done.returncode == 0 else ()


def kept() -> list[str]:
    """Return the directories that stay read-only in any case: programs, and records of processes.

    What is in them is run, or ended, by this machine's commands.
    """
    return [os.path.realpath(cache.root()), os.path.realpath(run_directory())]


def confined(argv: Sequence[str], writable: Iterable[str | Path], own: Sequence[Path]) -> list[str]:
    """Return the command that runs *argv* where it can write *writable* and *own* only.

    *own* are files or directories of the program's, wherever they are.
    """
    namespaces = _namespaces()
    if not namespaces:
        sys.stderr.write(
            "pyvmm: no mount namespace is to be had here: the lab host can write what you can\n"
        )
        return list(argv)
    drop = ("--no-new-privs", "--inh-caps=-all")
    keep = ",".join(["--bounding-set=-all", *(f"+{name}" for name in CAPABILITIES)])
    opened = [*map(str, own), *_mounts(writable)]
    there = [path for path in kept() if Path(path).is_dir()]
    seal = (*_PROGRAM, "seal", *there, "--", *opened, "--")
    return [*namespaces, *seal, "setpriv", *drop, keep, *argv]


def allow(pid: int, writable: Iterable[str | Path]) -> None:
    """Let the lab host whose QEMU is the process *pid* write *writable*. Raises `HostError`.

    What is not there yet: its directory. The root directory, a cache of programs, block devices,
    what this process finds read-only and what QEMU does not see are passed over.
    """
    paths = [path for path in _mounts(writable) if _read_only(f"/proc/{pid}/root{path}")]
    if not paths:
        return
    enter = ["nsenter", f"--target={pid}", "--mount"]
    if not Path(f"/proc/{pid}/ns/user").samefile("/proc/self/ns/user"):
        enter += ["--user", "--preserve-credentials"]
    command.run([*enter, "--", *_PROGRAM, "open", *paths])


def _mounts(writable: Iterable[str | Path]) -> Iterator[str]:
    """Yield what has to be made writable for *writable*: also what is mounted below."""
    for path in dict.fromkeys(Path(os.path.realpath(path)) for path in writable):
        there = path if path.exists() else path.parent
        if not _may_be_opened(str(there)):
            continue
        yield str(there)
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
        points = [os.fsdecode(_plain(line.split()[4])) for line in mounts]
        below = f"{there}/"
        yield from (each for each in points if each.startswith(below) and _may_be_opened(each))


def _may_be_opened(path: str) -> bool:
    if path == "/" or any(f"{path}/".startswith(f"{each}/") for each in kept()):
        return False
    with suppress(OSError):
        mode = Path(path).stat().st_mode
        return (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and not _read_only(path)
    return False


def _read_only(path: str) -> bool:
    """Return whether *path* is there, and on a mount that is read-only."""
    with suppress(OSError):
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return False


def _plain(text: bytes) -> bytes:
    """Return the name that /proc/self/mountinfo has as *text*: proc_pid_mountinfo(5)."""
    name, *rest = text.split(b"\\")
    return name + b"".join(bytes([int(each[:3], 8)]) + each[3:] for each in rest)
