"""Files that commands write beside what they print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def write(outputs: Iterable[tuple[Path | None, str]]) -> None:
    """Write each text to its path, unless that is None. Raises `UserError`."""
    for path, text in outputs:
        if path is not None:
            try:
                path.write_text(text)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
