"""The directory for run-time files, private to its user: lab hosts and running machines."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmm.errors import HostError


def run_directory() -> Path:
    """Return ``$XDG_RUNTIME_DIR/pyvmm``, or ``pyvmm-UID`` in $TMPDIR or /tmp; make it if need be.

    An XDG_RUNTIME_DIR of another user's is as good as none: su(1) leaves it in the environment.
    Raises `HostError`: it can't be made or is not private.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(base) / "pyvmm" if base.startswith("/") else None
    if path is None or not path.parent.is_dir() or path.parent.stat().st_uid != os.getuid():
        path = Path(os.environ.get("TMPDIR") or "/tmp") / f"pyvmm-{os.getuid()}"  # noqa: S108
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise HostError(
            f"{path}: {error.strerror}", "XDG_RUNTIME_DIR chooses another place"
        ) from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077 or not path.is_dir():
        raise HostError(f"{path} is not a private directory of yours", "remove it")
    return path


def subdirectory(name: str) -> Path:
    """Return the directory *name* in it; make it if need be. Raises `HostError`, as above."""
    path = run_directory() / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path
