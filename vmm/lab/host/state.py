"""Lab hosts' run-time files, and how those that a crash left are found and removed.

    <run directory>/lab/<id>/   state.json  who started it, QEMU's process, how to reach the agent
                                token       the secret that a client must send to the agent
                                console.log, qemu.log, qmp, tmp

A process is recorded by its id and its start time, as ids are used again.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.lab import cache
from vmm.run_directory import subdirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

_YOUNG = 10.0
"""Seconds for which a directory without a record may be one that is being set up."""


@dataclass(frozen=True)
class Process:
    """One process, even if its id is used again. *started* is in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has the id *pid* now; None if there is none."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        # proc_pid_stat(5): state is field 3, the first after the name; starttime is field 22.
        return None if fields[0] in b"ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return Process.of(self.pid) == self

    def kill(self, patience: float = 5.0) -> None:
        """End the process, and no other: SIGTERM, then SIGKILL after *patience* seconds."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if not self.alive:  # checked while the descriptor holds on to the process
                return
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
                if poll.poll(patience * 1000):
                    return
        finally:
            os.close(fd)


@dataclass(frozen=True)
class State:
    """The record of one lab host."""

    profile: str
    owner: Process
    keep: bool
    """Whether the host stays when its owner ends."""
    qemu: Process | None = None
    port: int = 0
    """The agent's TCP port on 127.0.0.1; 0 until the host is up."""
    started: float = 0.0
    """Seconds since the epoch."""
    boot_seconds: float = 0.0
    version: int = 0
    """The protocol version of its agent."""

    @property
    def up(self) -> bool:
        """Whether the host can run commands."""
        return bool(self.port and self.qemu and self.qemu.alive)

    @property
    def wanted(self) -> bool:
        """Whether the host is to stay: its owner lives, or it is kept up and is up."""
        if self.owner.alive:
            return True
        return self.keep and self.up


def hosts_directory() -> Path:
    """Return the directory that holds a directory for each lab host."""
    return subdirectory("lab")


def load(directory: Path) -> State | None:
    """Return the record in *directory*; None if there is none, or a damaged one."""
    value = cache.read_json(directory / "state.json")

    def process(name: str) -> Process | None:
        fields = value.get(name)
        return Process(**fields) if isinstance(fields, dict) else None

    try:
        owner = process("owner")
        if owner is None:
            return None
        return State(**{**value, "owner": owner, "qemu": process("qemu")})  # type: ignore[arg-type]
    except TypeError:
        return None


def save(directory: Path, state: State) -> None:
    """Record *state* in *directory*."""
    cache.write_json(directory / "state.json", asdict(state))


def myself() -> Process:
    """Return this process."""
    process = Process.of(os.getpid())
    assert process is not None
    return process


def hosts() -> Iterator[tuple[Path, State]]:
    """Yield each lab host, and remove what dead ones left."""
    for directory in sorted(hosts_directory().iterdir()):
        if not directory.is_dir():
            continue
        state = load(directory)
        if state is None:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - directory.stat().st_mtime > _YOUNG:
                    discard(directory)
        elif state.wanted:
            yield directory, state
        else:
            discard(directory, state)


def discard(directory: Path, state: State | None = None) -> None:
    """End the host in *directory* if it runs, and remove the directory."""
    if state and state.qemu:
        state.qemu.kill()
    else:
        _quit(
            directory / "qmp"
        )  # perhaps started by a process that was killed before it recorded so
    shutil.rmtree(directory, ignore_errors=True)


def tail(directory: Path) -> str:
    """Return in one line the last messages of QEMU and of the host's kernel, or its panic."""
    said = []
    for name in ("qemu.log", "console.log"):
        try:
            text = (directory / name).read_text(errors="replace")
        except OSError:
            continue
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said += [line for line in lines if "Kernel panic" in line][:1] or lines[-4:]
    return " | ".join(said) or "it said nothing"


def _quit(path: Path) -> None:
    """Ask the QEMU behind the QMP socket *path* to end."""
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(2)
            monitor.connect(str(path))
            monitor.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
            while monitor.recv(4096):
                pass
    except OSError:
        pass
