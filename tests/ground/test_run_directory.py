"""Where run-time files are, and that nobody else reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.run_directory import run_directory, subdirectory


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvmm"


def test_it_is_made_for_its_user_alone(base: Path) -> None:
    assert subdirectory("machines") == base / "machines"
    assert base.stat().st_mode & 0o777 == 0o700
    assert (base / "machines").stat().st_mode & 0o777 == 0o700


def test_one_that_others_can_read_is_refused(base: Path) -> None:
    base.mkdir()
    base.chmod(0o755)
    with pytest.raises(HostError, match="not a private directory"):
        run_directory()


def test_without_a_runtime_directory_the_temporary_one_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run_directory() == tmp_path / f"pyvmm-{os.getuid()}"


def test_a_runtime_directory_of_another_user_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(HostError, match="not a private directory"):  # made by the one we are
        run_directory()
    assert not (tmp_path / "pyvmm").exists()
    assert (tmp_path / f"pyvmm-{tmp_path.stat().st_uid + 1}").is_dir()
