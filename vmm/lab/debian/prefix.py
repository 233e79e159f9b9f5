"""Programs of another Debian release: unpacked into the cache, run by their own ld.so.

They use none of the machine's libraries, so it does not matter how old those are.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.debian import apt
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MACHINES = {
    "x86_64": ("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "aarch64": ("arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}
"""For each machine of uname: Debian's architecture, multiarch triplet and dynamic loader."""


@dataclass(frozen=True)
class Prefix:
    """A directory with unpacked packages and all libraries that they need."""

    root: Path

    def command(self, program: str) -> list[str]:
        """Return the command that starts *program*, a path in the prefix: ``usr/bin/kmod``."""
        _, triplet, loader = _machine()
        libraries = self.root / "usr/lib" / triplet
        return [
            str(libraries / loader),
            "--library-path",
            f"{libraries}:{libraries / 'pulseaudio'}",
            str(self.root / program),
        ]


def _machine() -> tuple[str, str, str]:
    try:
        return _MACHINES[platform.machine()]
    except KeyError:
        raise HostError(
            f"the lab runs on x86-64 and arm64 machines, not on {platform.machine()}"
        ) from None


def prefix(name: str, packages: Sequence[str], suite: str = "trixie") -> Prefix:
    """Return a prefix with *packages* of *suite* and all that they depend on, from the cache."""
    debs = apt.fetch(packages, suite=suite, arch=_machine()[0], closure=True)
    where = cache.root() / "tools" / f"{name}-{cache.digest([deb.name for deb in debs])}"

    def build(temporary: Path) -> None:
        with step(f"unpacking {name}"):
            apt.unpack(debs, temporary)

    return Prefix(cache.entry(where, build))


def python() -> list[str]:
    """Return the command that runs the lab hosts' version of Python here, to compile for it."""
    return [*prefix("python", ["python3.13-minimal"]).command("usr/bin/python3.13"), "-I"]


def busybox_applets() -> list[str]:
    """Return the names of busybox's applets: those of Debian trixie's for this machine."""
    tools = prefix("busybox", ["busybox-static"])
    return command.run([str(tools.root / "usr/bin/busybox"), "--list"]).split()


def depmod() -> list[str]:
    """Return the command that runs depmod."""
    argv = prefix("kmod", ["kmod"]).command("usr/sbin/depmod")
    return [*argv[:-1], "--argv0", "depmod", argv[-1]]
