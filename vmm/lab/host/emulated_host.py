"""One lab host: start it, find it, run commands in it, end it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import HostError, UserError
from vmm.lab import cache, protocol
from vmm.lab.command import missing
from vmm.lab.debian import rootfs
from vmm.lab.host import cleaning, export, profiles, qemu, qmp, state, tree
from vmm.lab.host.session import AgentClient, Completed
from vmm.lab.inside.agent import READY
from vmm.lab.progress import step
from vmm.run_directory import run_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from vmm.lab.host.profile import Profile

_TIMEOUT = 180.0
"""Seconds until a host must be up. It takes under ten, more on a busy machine."""


class Host:
    """A lab host that is up. The end of ``with`` ends it, unless it is kept up."""

    def __init__(self, directory: Path, record: state.State) -> None:
        self.directory = directory
        self.record = record
        self.agent = AgentClient(directory, record)

    @classmethod
    def start(
        cls, profile: str | Profile, *, keep: bool = False, writable: Sequence[Path] = ()
    ) -> Self:
        """Start a host of *profile*; with *keep*, one that stays up, or return the one that is up.

        Of this machine it can write the current directory, and *writable*: see `export`.
        A host that is not kept ends with `close`, and with the calling *thread*, however that
        ends. Raises HostError if the host does not come up, UserError if there is no such profile.
        """
        if isinstance(profile, str):
            profile = profiles.profile(profile)
        if not keep:
            return cls._boot(profile, writable, keep=False)
        with _starting(profile.name):
            if host := cls._find(profile.name):
                return host
            for directory, record in state.hosts():
                if directory.name == profile.name:  # of another version of pyvmm
                    state.discard(directory, record)
            return cls._boot(profile, writable, keep=True)

    @classmethod
    def find(cls, profile: str) -> Self | None:
        """Return the host of *profile* that is kept up and speaks our protocol; None if none does.

        Wait if another process is starting it.
        """
        with _starting(profile):
            return cls._find(profile)

    @classmethod
    def running(cls, profile: str) -> Self:
        """Return a host of *profile* that is up, kept or not. Raises `UserError`: none is."""
        for directory, record in state.hosts():
            if record.profile == profile and record.up and record.version == protocol.VERSION:
                return cls(directory, record)
        raise UserError(f"no lab host {profile} is up", "pyvmm ps lists machines and their hosts")

    @classmethod
    def _find(cls, profile: str) -> Self | None:
        for directory, record in state.hosts():
            if directory.name == profile and record.up and record.version == protocol.VERSION:
                return cls(directory, record)
        return None

    @classmethod
    def _boot(cls, profile: Profile, writable: Sequence[Path], *, keep: bool) -> Self:
        for _ in state.hosts():
            pass  # removes what dead ones left
        emulator = qemu.emulator()
        image = profile.kernel.image()
        initrd = rootfs.initrd(profile.kernel.modules())
        tree.archive()  # what it lacks, a compiler for instance, is known before the host boots
        owner = state.myself()
        name = profile.name if keep else f"{profile.name}.{owner.pid}.{secrets.token_hex(3)}"
        directory = state.hosts_directory() / name
        with cache.writing("a lab host's run-time files"):
            directory.mkdir(mode=0o700)
            record = state.State(profile.name, owner, keep, started=time.time())
            state.save(directory, record)
            (directory / "token").touch(0o600)
            (directory / "token").write_text(secrets.token_hex(32))
            (directory / "console.log").touch()
        try:
            dtb = device_tree(emulator, profile, directory)
            argv = qemu.arguments(
                profile, image=image, initrd=initrd, directory=directory, device_tree=dtb
            )
            pid = _launch([*emulator.command, *argv], directory, writable, keep=keep)
            record = replace(record, qemu=state.Process.of(pid))
            state.save(directory, record)
            with step(f"starting a lab host ({profile.name})", total=8) as reach:
                _await(pid, directory, reach)
            port = qmp.forwarded_port(directory / "qmp")
            seconds = time.time() - record.started
            host = cls(
                directory,
                replace(record, port=port, boot_seconds=seconds, version=protocol.VERSION),
            )
            for line in profile.setup:
                host._set_up(line)
            state.save(directory, host.record)
        except BaseException:
            state.discard(directory, record)
            _bury(record)
            raise
        cleaning.keep_bound()
        return host

    def _set_up(self, line: str) -> None:
        done = self.run(["sh", "-c", line], tree=False)
        if done.status:
            text = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise HostError(
                f"setting up lab host {self.record.profile}: {line[:60]!r} fails: {text}"
            )

    def close(self) -> None:
        """End the host. Idempotent."""
        state.discard(self.directory, self.record)
        _bury(self.record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.record.keep:
            self.close()

    def run(  # noqa: PLR0913  (as subprocess.run has them)
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout: float | None = None,
        tree: bool = True,
    ) -> Completed:
        """Run *argv* to its end, with input and output in memory, as `subprocess.run` does.

        *cwd* is a directory of this machine's. After *timeout* seconds the command is ended and
        HostError raised. Without *tree* the working tree's vmm is not installed first. Raises
        HostError also if the host goes away, UserError if the command can't be started.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        output = {protocol.OUTPUT: bytearray(), protocol.ERRORS: bytearray()}

        def write(kind: bytes, data: bytes) -> None:
            output[kind].extend(data)

        rest = memoryview(stdin)
        with self.agent.start(argv, write, env=env, cwd=cwd, tree=tree) as session:
            status = None
            while status is None:
                while rest and session.room:
                    sent = min(len(rest), session.room, protocol.CHUNK)
                    session.send_input(bytes(rest[:sent]))
                    rest = rest[sent:]
                if not rest and session.input_open:
                    session.send_input(b"")
                if deadline is not None:
                    session.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    status = session.receive()
                except TimeoutError:
                    raise HostError(f"in the lab host: {argv[0]} took over {timeout:g} s") from None
        return Completed(status, bytes(output[protocol.OUTPUT]), bytes(output[protocol.ERRORS]))


@contextmanager
def _starting(name: str) -> Iterator[None]:
    """Hold the lock under which the kept-up host *name* is started."""
    fd = os.open(run_directory() / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _launch(argv: Sequence[str], directory: Path, writable: Sequence[Path], *, keep: bool) -> int:
    """Start QEMU in a session of its own, out of reach of ^C; return its process id.

    Of this machine it can write the current directory, *writable*, its console's log and a
    directory for temporary files, such as what is written to a disk with ``snapshot=on``.
    """
    for tool in (argv[0], "setpriv"):
        if shutil.which(tool) is None:
            raise missing(tool)
    if not keep:
        argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    temporary = directory / "tmp"
    temporary.mkdir(mode=0o700)
    argv = export.confined(argv, [Path.cwd(), *writable], [directory / "console.log", temporary])
    create = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with socket.socket(socket.AF_UNIX) as monitor:
        try:
            monitor.bind(str(directory / "qmp"))
        except OSError as error:
            raise HostError(f"{directory / 'qmp'}: {error}") from error
        monitor.listen()
        # Not subprocess: Popen warns if it is dropped while the process lives, as this one may.
        return os.posix_spawnp(
            argv[0],
            argv,
            {**os.environ, "TMPDIR": str(temporary)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(directory / "qemu.log"), create, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, monitor.fileno(), qemu.MONITOR),
            ],
            setsid=True,
        )


def _bury(record: state.State) -> None:
    """Reap a dead QEMU if this process started it."""
    if record.qemu:
        with suppress(ChildProcessError):
            os.waitpid(record.qemu.pid, os.WNOHANG)


def _await(pid: int, directory: Path, reach: Callable[[float], None]) -> None:
    """Wait until the agent can be reached. Raises HostError; *reach* gets the seconds so far."""
    started = time.monotonic()
    console = directory / "console.log"
    while READY.encode() not in console.read_bytes():
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            raise HostError(
                f"the lab host ended before it was up "
                f"({os.waitstatus_to_exitcode(status)}): {state.tail(directory)}"
            )
        elapsed = time.monotonic() - started
        reach(elapsed)
        if elapsed > _TIMEOUT:
            raise HostError(
                f"the lab host was not up after {_TIMEOUT:.0f} s: {state.tail(directory)}",
                "is this machine very busy?",
            )
        time.sleep(0.02)


def device_tree(emulator: qemu.Emulator, profile: Profile, directory: Path) -> Path | None:
    """Return the file of the profile's device tree; None if the profile takes QEMU's as it is."""
    if profile.device_tree is None:
        return None
    path = directory / "host.dtb"
    argv = qemu.dump_device_tree(profile, path)
    subprocess.run([*emulator.command, *argv], check=True, capture_output=True)
    profile.device_tree(path)
    return path
