"""Serve a directory of the host with virtiofsd, from Debian's package of that name."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError
from vmm.virtio.vhost.daemon import find
from vmm.virtio.vhost.service import Service

if TYPE_CHECKING:
    from vmm.config.share import ShareConfig
    from vmm.events import Events

PROGRAM: Final = "virtiofsd"
PLACES: Final = ("/usr/libexec", "/usr/lib")
"""Where Debian and others install it. Not /usr/lib/qemu: QEMU once had another program there."""
PACKAGE: Final = "virtiofsd (Debian 13 has it, 12 does not)"

MOUNTS: Final = Path("/proc/self/mountinfo")
NO_USER_NAMESPACES: Final = {
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "0",  # Debian's own
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "1",  # Ubuntu's
    Path("/proc/sys/user/max_user_namespaces"): "0",
}
"""Files, and the content that denies user namespaces, or their use, to everybody but root."""


def service(config: ShareConfig, events: Events) -> Service:
    """Return what starts a daemon that serves the directory of *config*.

    Raises `UserError` if there is no such directory, `HostError` if there is no such program.
    """
    check_directory(config)
    what = f"--share {config.path}"
    program = find(PROGRAM, PLACES, package=PACKAGE, what_for=what)
    return Service(partial(command, program, config), events, what=what)


def check_directory(config: ShareConfig) -> None:
    """Raise `UserError` if there is no directory to share."""
    try:
        os.close(os.open(config.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise UserError(f"--share {config.path}: {error.strerror}", "name a directory") from error


def command(program: str, config: ShareConfig, fd: int) -> list[str]:
    """Return the command line of a daemon that listens on *fd*."""
    argv = [program, f"--fd={fd}", f"--shared-dir={config.path.absolute()}"]
    argv += [f"--cache={config.cache}", f"--sandbox={sandbox()}", "--log-level=warn"]
    return [*argv, "--readonly"] if config.read_only else argv


def notice(config: ShareConfig) -> str | None:
    """Return what to tell the user: virtiofsd has no sandbox on this host."""
    if sandbox() != "none":
        return None
    return (
        f"--share {config.path}: virtiofsd runs without a sandbox, as this host has no user "
        "namespaces for you: a guest that breaks it reaches all of your files"
    )


def sandbox() -> str:
    """Return virtiofsd's strongest sandbox on this host: "namespace", "chroot" or "none".

    pivot_root(2), which "namespace" needs, refuses an initial RAM file system: that is the root of
    hosts in the lab.
    """
    root = os.geteuid() == 0
    for line in MOUNTS.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == "/" and rest.split()[0] == "rootfs":
            return "chroot" if root else "none"
    forbidden = any(
        path.exists() and path.read_text().strip() == no for path, no in NO_USER_NAMESPACES.items()
    )
    return "none" if forbidden and not root else "namespace"
