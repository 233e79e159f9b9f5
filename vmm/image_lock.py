"""A file that a guest writes is one machine's alone; several may share one that none writes."""

from __future__ import annotations

import fcntl
from contextlib import suppress

from vmm.errors import UserError


def lock_image(fd: int, what: str, *, read_only: bool) -> None:
    """Lock an open file (flock) until *fd* is closed; *what* is the option and the file.

    Raises `UserError` if another machine has it. Some file systems have no locks: there it is
    left to the user.
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
