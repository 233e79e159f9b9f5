"""--snapshot, as the user writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config.snapshot import SnapshotConfig, parse_snapshot
from vmm.errors import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("saved", SnapshotConfig(Path("saved"))),
        ("/a/b,then=go", SnapshotConfig(Path("/a/b"))),
        ("a,,b,then=end", SnapshotConfig(Path("a,b"), end=True)),
    ],
)
def test_a_directory_and_what_happens_then(text: str, wanted: SnapshotConfig) -> None:
    assert parse_snapshot(text) == wanted


@pytest.mark.parametrize("text", ["", ",then=end", "d,then=", "d,then=stop", "d,then", "d,x=1"])
def test_anything_else_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UserError, match=r"--snapshot.*; ") as error:
        parse_snapshot(text)
    assert "\n" not in str(error.value)
