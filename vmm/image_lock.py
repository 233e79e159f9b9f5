"""Lock images with flock: exclusive for writers, shared for readers."""

from __future__ import annotations

import fcntl
from contextlib import suppress

from vmm.errors import UserError


def lock_image(fd: int, what: str, *, read_only: bool) -> None:
    """Lock the open file *fd* until it is closed; errors name *what*, the option and the file.

    Does nothing on file systems without locks. Raises `UserError` if another machine has the file.
    """
    kind = fcntl.LOCK_SH if read_only else fcntl.LOCK_EX
    with suppress(OSError):
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{what}: another machine uses it",
                "end that one, give each its own copy, or give both the file with ,ro",
            ) from error


def unlock_image(fd: int) -> None:
    """Unlock the open file *fd*. Does nothing on file systems without locks."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
