"""TOML files that users write."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, hint: str) -> dict[str, Any]:
    """Return the table in the file at *path*. Raises `UserError`; *hint*: where a sample is."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "check the path") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: no TOML: {error}", hint) from error
