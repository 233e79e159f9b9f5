"""Install Debian packages in a lab host that is up: programs that machines need beside them.

    install(host, ["passt"])     puts Debian's arm64 `passt` on the host's PATH

The packages stay outside, unpacked in the cache. The host gets symbolic links to their files, so
what is not used costs nothing there. No maintainer script runs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.debian import apt
from vmm.lab.debian.rootfs import SUITE
from vmm.lab.host.session import inside
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vmm.lab.host.emulated_host import Host

_LEFT_OUT = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/lintian")

_LINK = """\
import os, sys
marks = "/run/pyvmm/packages/"
os.makedirs(marks, exist_ok=True)
for directory in sys.argv[1:]:
    mark = marks + os.path.basename(directory)
    for part in ("named", "needed") if not os.path.exists(mark) else ():
        for path in open(directory + "/" + part + ".files").read().split("\\n"):
            here = "/" + path
            if part == "named" and os.path.islink(here):
                os.unlink(here)
            if not os.path.lexists(here):
                os.makedirs(os.path.dirname(here), exist_ok=True)
                os.symlink(directory + "/" + part + here, here)
    open(mark, "w").close()
"""
"""Runs in the host. The host's files stay; a symbolic link gives way to a file of a package that
was named, so that a program replaces busybox's applet."""


def unpacked(package: str) -> Path:
    """Return a directory with *package* in ``named`` and all that it depends on in ``needed``.

    It is in the cache. Raises `HostError`: no such package, no network, disk full.
    """
    debs = apt.fetch([package], suite=SUITE, arch="arm64", closure=True)
    named = [deb for deb in debs if deb.name.partition("_")[0] == package]
    parts = {"named": named, "needed": [deb for deb in debs if deb not in named]}
    where = cache.root() / "tools" / f"host-{package}-{cache.digest([deb.name for deb in debs])}"

    def build(temporary: Path) -> None:
        with step(f"unpacking {package} for lab hosts"):
            for part, some in parts.items():
                apt.unpack(some, temporary / part)
                for path in _LEFT_OUT:
                    cache.remove(temporary / part / path)
                (temporary / f"{part}.files").write_text("\n".join(_files(temporary / part)))

    return cache.entry(where, build)


def _files(tree: Path) -> list[str]:
    """Return the paths of all files and symbolic links in *tree*, relative to it."""
    return sorted(
        os.path.relpath(f"{directory}/{name}", tree)
        for directory, below, files in os.walk(tree)
        for name in [*files, *(each for each in below if os.path.islink(f"{directory}/{each}"))]  # noqa: PTH114
    )


def install(host: Host, packages: Iterable[str]) -> None:
    """Install *packages* in *host*, until it ends. Raises `HostError`."""
    names = sorted(set(packages))
    if not names:
        return
    argv = ["python3", "-I", "-S", "-c", _LINK, *(inside(unpacked(name)) for name in names)]
    done = host.run(argv, tree=False)
    if done.status:
        text = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise HostError(f"lab host {host.record.profile} does not take {' '.join(names)}: {text}")
