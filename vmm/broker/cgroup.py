"""Give a machine, its broker and its daemons a cgroup of their own, and remove it at the end.

    PARENT/pyvmm-PID   of the machine's process ID; made before the machine has RAM

cgroup v2 only. Sources: Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"
and "Delegation Containment"; cgroups(7).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

from vmm.broker.server import Debt
from vmm.errors import HostError

MOUNTS: Final = "/proc/self/mountinfo"
OWN: Final = "/proc/self/cgroup"

HINTS: Final = {
    errno.ENOENT: "make it first; of controllers: cgroup.controllers has what there is",
    errno.EACCES: "it has to be delegated to you: see systemd's Delegate=",
    errno.EPERM: "it has to be delegated to you: see systemd's Delegate=",
    errno.EBUSY: "it has processes of its own: name one without, or move them to a child of it",
    errno.EROFS: "cgroup v2 is mounted read-only here, as in a container",
}


def mount() -> str:
    """Return where cgroup v2 is mounted. Raises `HostError`."""
    with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
        for line in lines:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("cgroup2 "):
                return fields.split()[4]
    raise HostError("--cgroup: cgroup v2 is not mounted", "mount -t cgroup2 cgroup2 DIRECTORY")


def _write(path: str, text: str) -> None:
    """Write to a file by one write(2), whose error is the kernel's answer. Raises `HostError`."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode(errors="surrogateescape"))
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"--cgroup: cannot write {text!r} to {path}: {error.strerror}",
            HINTS.get(error.errno or 0, "cgroup.controllers of its parent has what there is"),
        ) from error


def _enable(controller: str, above: str) -> None:
    """Let the children of cgroup *above* have *controller*. Raises `HostError`."""
    top = mount()
    steps = os.path.relpath(above, top).split("/") if above != top else []
    for depth in range(len(steps) + 1):
        path = "/".join((top, *steps[:depth], "cgroup.subtree_control"))
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                enabled = file.read().split()
        except OSError as error:
            raise HostError(
                f"--cgroup: there is no {os.path.dirname(path)}: {error.strerror}",  # noqa: PTH120
                HINTS.get(error.errno or 0, ""),
            ) from error
        if controller not in enabled:
            _write(path, f"+{controller}")


def _own() -> str:
    """Return this process's cgroup, as a path below the mount."""
    with open(OWN, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
        return next(line[len("0::") :].strip() for line in lines if line.startswith("0::"))


def enter(parent: str, machine: int, *limits: str) -> str:
    """Make a cgroup in *parent* for process *machine*; move that there, and this process.

    limits  files and what to write to them, in turn

    Returns the directory. Raises `HostError`: nothing is left then.
    """
    above = os.path.normpath(f"{mount()}/{parent}")
    path = f"{above}/pyvmm-{machine}"
    pairs = [*zip(limits[::2], limits[1::2], strict=True)]
    former = _own()
    for controller in dict.fromkeys(name.partition(".")[0] for name, _ in pairs):
        _enable(controller, above)
    _sweep(above, machine)
    try:
        os.mkdir(path)  # noqa: PTH102  (text)
    except OSError as error:
        raise HostError(
            f"--cgroup: cannot make {path}: {error.strerror}", HINTS.get(error.errno or 0, "")
        ) from error
    try:
        for name, value in pairs:
            _write(f"{path}/{name}", value)
        _write(f"{path}/cgroup.procs", str(os.getpid()))
        _write(f"{path}/cgroup.procs", str(machine))
    except HostError:
        _remove(path, former)
        raise
    _former[path] = former
    return path


def _sweep(above: str, machine: int) -> None:
    """Remove what machines have left in *above* whose brokers were killed.

    That is: without processes, with the number of one that has ended or of *machine*, which has
    none yet.
    """
    with suppress(OSError):
        for entry in os.listdir(above):  # noqa: PTH208  (text)
            number = entry.removeprefix("pyvmm-")
            if entry == number or not number.isdecimal():
                continue
            if int(number) == machine or not os.path.exists(f"/proc/{number}"):  # noqa: PTH110
                with suppress(OSError):  # EBUSY: its daemons are about to end
                    os.rmdir(f"{above}/{entry}")  # noqa: PTH106  (text)


_former: dict[str, str] = {}
"""Where this process was before, by the cgroup that it has entered."""


def _remove(path: str, former: str) -> None:
    """Move who is in the cgroup *path* to *former*, and remove it.

    That is this process, and the machine's if it waits for this one's end.
    """
    with suppress(OSError):
        with open(f"{path}/cgroup.procs", encoding="utf-8") as file:  # noqa: PTH123
            processes = file.read().split()
        for process in processes:
            with suppress(HostError):  # it has ended
                _write(f"{mount()}{former}/cgroup.procs", process)
        os.rmdir(path)  # noqa: PTH106  (text)


def leave(_parent: str, machine: int, *_limits: str | bool) -> None:
    """Remove the cgroup of process *machine*: its daemons have ended, and it has or is about to."""
    for path, former in [*_former.items()]:
        if path.endswith(f"/pyvmm-{machine}"):
            del _former[path]
            _remove(path, former)


DEBTS: Final = {"cgroup": Debt(leave, enter)}
"""For `vmm.broker.current`."""
