"""``--snapshot`` and ``--restore``: a directory that keeps a machine's state."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmm.config.option import choice, parse_keys, split
from vmm.errors import UserError

SYNTAX = "DIR[,then=go|end]"


class SnapshotConfig(NamedTuple):
    """Where snapshots go: each replaces the one before. With *end* the machine ends after one."""

    path: Path
    end: bool = False


def parse_snapshot(text: str) -> SnapshotConfig:
    """Parse ``DIR[,then=go|end]``. Raises `UserError`."""
    path, *parts = split(text)
    if not path:
        raise UserError(f"--snapshot: {text!r} names no directory", f"write {SYNTAX}")
    keys = {"then": choice("go", "end")}
    found = parse_keys(f"--snapshot {text}", parts, keys, "the option is then=go or then=end")
    return SnapshotConfig(Path(path), found.get("then") == "end")
