"""Seal a machine's process before its guest runs: what it does not need, it gives up for good.

See cdefs/seal.c for what, and this package's README.md for what that stops. Nothing undoes it, so
only a process that exists for one machine is sealed, which is what ``pyvmm run`` is.
"""

from __future__ import annotations

import os

from vmm._native import lib
from vmm.errors import HostError


def seal() -> None:
    """Seal this process, and what it starts. Raises `HostError`.

    PR_SET_NO_NEW_PRIVS is the calling thread's and that of those it starts: call this before there
    is another one.
    """
    error = lib.pyvmm_seal()
    if error:
        raise HostError(
            f"--sandbox: cannot seal the process: {os.strerror(-error)}",
            "leave it out with --sandbox off",
        )
