"""What a program's main part runs in, so that its user gets one line where it fails."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import VmmError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def program(usage: str = "") -> Iterator[list[str]]:
    """Yield the program's arguments, whose names *usage* has, those that may be missing in [].

    Ends the program with one line on standard error, and status 1, for arguments that are too few
    or too many, for `VmmError` and for OSError, among them those of standard output.
    """
    words, given = usage.split(), sys.argv[1:]
    needed = sum(not word.startswith("[") for word in words)
    if not needed <= len(given) <= len(words):
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} {usage}")
    try:
        yield given
        sys.stdout.flush()
    except (VmmError, OSError) as error:
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes once more at its end
        raise SystemExit(f"failed: {error}") from None
