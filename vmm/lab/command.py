"""Run a tool of the distribution; its failure becomes one line."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

NO_SPACE = "No space left on device"
PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""The Debian packages of each tool whose package has another name, or needs one more."""
DEBIAN = ("apt-cache", "apt-get", "dpkg-deb")
"""Tools that every Debian has."""


def missing(tool: str) -> HostError:
    """Return the error for a *tool* that is not installed."""
    if tool in DEBIAN:
        return HostError(f"{tool} is not installed", "the lab runs on Debian 12 and 13")
    package = PACKAGES.get(tool, tool)
    return HostError(f"{tool} is not installed", f"install it: apt-get install {package}")


def complaint(stderr: str) -> str:
    """Return the line of *stderr* that most likely says why: the first error, or the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:") or "error" in line.lower()]
    return (errors or lines[-1:] or ["it did not say why"])[0]


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run *argv* and return what it writes to stdout. *env* is added to the environment.

    Messages are in English (LC_ALL=C). Raises HostError if the tool is missing or fails.
    """
    try:
        done = subprocess.run(
            argv,
            check=False,
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
        )
    except FileNotFoundError as error:
        raise missing(argv[0]) from error
    if done.returncode:
        stderr = done.stderr.decode(errors="replace")
        if NO_SPACE in stderr:
            raise HostError(
                f"no space left for what {argv[0]} writes",
                "free some, or set XDG_CACHE_HOME to a roomier place, and try again",
            )
        raise HostError(f"{argv[0]} failed ({done.returncode}): {complaint(stderr)}")
    return done.stdout.decode(errors="replace")
