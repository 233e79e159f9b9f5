"""Bad command lines, and the one line that each of them is refused with: `bad_inputs.toml`.

They run in this process, and so take milliseconds. None of them may start anything: the cache is
empty, PATH as well, and the directory must hold the same files afterwards.
"""

from __future__ import annotations

import gzip
import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.arm64.kernel_files import arm64_image, elf
from vmm import broker
from vmm.cli import main

TABLE = Path(__file__).with_name("bad_inputs.toml")
ROWS: list[dict[str, Any]] = tomllib.loads(TABLE.read_text())["refused"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the files that the table names; enter their directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "guest.img").write_bytes(arm64_image())
    (directory / "empty.img").touch()
    (directory / "text.img").write_bytes(b"#!/bin/sh\necho hello\n" * 50)
    (directory / "cut.gz").write_bytes(gzip.compress(arm64_image(body=os.urandom(100_000)))[:9000])
    (directory / "x86.elf").write_bytes(elf([(0x100_0000, b"\x90" * 64)], machine=62))
    (directory / "disk.img").write_bytes(bytes(1 << 20))
    (directory / "short.img").write_bytes(b"QFI\xfb")
    broker.current()  # for the tests that follow: one that is started below has no PATH for daemons
    monkeypatch.chdir(directory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "laptop", "", "", "x86_64")))
    return directory


@pytest.mark.parametrize("row", ROWS, ids=[row["typed"] for row in ROWS])
def test_it_is_refused_with_its_line(
    files: Path,
    row: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = sorted(files.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["pyvmm", *shlex.split(row["typed"])])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", f"pyvmm: {row['line']}\n")
    assert ended.value.code == row.get("status", 2)
    assert "; " in row["line"], "it says what to do"
    assert sorted(files.rglob("*")) == before, "nothing is left behind"


def test_the_table_has_a_hundred_rows_and_no_row_twice() -> None:
    assert len(ROWS) >= 100
    assert len({row["typed"] for row in ROWS}) == len(ROWS)
