"""A snapshot's directory has a whole snapshot, or none, wherever its writer stops."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmm.broker import Broker
from vmm.errors import HostError, UserError
from vmm.state.directory import SnapshotDirectory


def write(directory: SnapshotDirectory, contents: str) -> None:
    """Write a snapshot whose memory and manifest say *contents*."""
    with directory.replace() as (name, fd, commit):
        os.write(fd, contents.encode())
        commit(f"{name} {contents}")


def whole(path: Path) -> str:
    """Return what the snapshot in *path* says; it must be whole."""
    name, contents = (path / "manifest.json").read_text().split()
    assert (path / name).read_text() == contents
    return contents


def test_each_snapshot_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    directory = SnapshotDirectory(path)
    assert path.stat().st_mode & 0o777 == 0o700
    for contents in ("first", "second", "third"):
        write(directory, contents)
        assert whole(path) == contents
    assert sorted(each.name for each in path.iterdir()) == ["manifest.json", "memory.3"]
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in path.iterdir())


def calls_of(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> list[str]:
    """Call *act* before what a writer does as number *at*, itself or by the broker; return all."""
    made: list[str] = []

    def wrap(owner: object, function: str) -> None:
        real = getattr(owner, function)

        def call(*arguments: Any, **named: Any) -> Any:
            made.append(str(arguments[2]) if owner is Broker else function)
            if len(made) - 1 == at:
                act()
            return real(*arguments, **named)

        monkeypatch.setattr(owner, function, call)

    wrap(Broker, "do")
    wrap(os, "fsync")
    wrap(os, "write")
    return made


@pytest.mark.parametrize("at", range(13))
def test_the_old_snapshot_is_whole_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    path = tmp_path / "saved"
    directory = SnapshotDirectory(path)
    write(directory, "old")

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        made = calls_of(patch, at, full)
        try:
            write(directory, "new")
        except HostError as error:
            assert "No space left on device; free some space" in str(error)  # noqa: PT017
    assert whole(path) in ("old", "new"), made
    write(directory, "newer")
    assert whole(path) == "newer"
    assert sorted(each.suffix for each in path.iterdir())[1] == ".json"
    assert len(list(path.iterdir())) == 2, "what failed is removed, at the latest by the next"


@pytest.mark.parametrize("at", range(13))
def test_the_old_snapshot_is_whole_when_the_writer_is_killed(tmp_path: Path, at: int) -> None:
    path = tmp_path / "saved"
    directory = SnapshotDirectory(path)
    write(directory, "old")
    child = os.fork()
    if child == 0:
        calls_of(pytest.MonkeyPatch(), at, lambda: os._exit(9))
        write(directory, "new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.waitstatus_to_exitcode(status) == 9
    assert whole(path) in ("old", "new")
    assert killed or whole(path) == "new"
    write(directory, "newer")
    assert whole(path) == "newer"
    names = {each.name for each in path.iterdir()}
    assert len(names) == 2, names


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--snapshot .*file: Not a directory; name a directory"):
        SnapshotDirectory(tmp_path / "file")
    with pytest.raises(UserError, match="No such file or directory"):
        SnapshotDirectory(tmp_path / "a" / "b")
