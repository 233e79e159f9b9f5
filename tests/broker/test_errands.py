"""Errands: what the broker does again and again, and the bounds of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.broker import Broker, errands
from vmm.errors import HostError


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


def offer(broker: Broker, directory: Path, pattern: str) -> int:
    """Offer files in *directory* to *broker*, which is frozen then."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return broker.offer("files", pattern, fds=[fd])
    finally:
        os.close(fd)
        broker.freeze()


def test_files_are_made_renamed_and_removed_in_their_directory(
    broker: Broker, tmp_path: Path
) -> None:
    files = offer(broker, tmp_path, "[ab]")
    (tmp_path / "other").touch()
    _, (fd,) = broker.do(files, "create", "a")
    os.write(fd, b"text")
    os.close(fd)
    with pytest.raises(FileExistsError):
        broker.do(files, "create", "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    broker.do(files, "rename", "a", "b")
    broker.do(files, "sync")
    assert broker.do(files, "names") == (["b"], [])
    assert (tmp_path / "b").read_text() == "text"
    broker.do(files, "remove", "b")
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("[ab]", each) for each in ("other", "a\n", ".", "")]
    + [(".*", each) for each in ("../a", "b/../other", "/etc/a")],
)
def test_other_names_are_refused(broker: Broker, tmp_path: Path, pattern: str, name: str) -> None:
    directory = tmp_path / "here"
    (directory / "b").mkdir(parents=True)
    for each in ("a", "other", "../a"):
        (directory / each).write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    files = offer(broker, directory, pattern)
    for step in (("create", name), ("remove", name), ("rename", "a", name), ("rename", name, "a")):
        with pytest.raises(PermissionError, match="none of the machine's"):
            broker.do(files, *step)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_place_of_a_new_file_is_not_followed(broker: Broker, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "a").symlink_to(victim)
    files = offer(broker, tmp_path, "a")
    with pytest.raises(FileExistsError):
        broker.do(files, "create", "a")
    assert not victim.exists()


@pytest.mark.parametrize("step", ["__init__", "_checked", "kind", "open"])
def test_what_is_no_step_is_refused(broker: Broker, tmp_path: Path, step: str) -> None:
    files = offer(broker, tmp_path, "a")
    with pytest.raises(PermissionError, match="no step"):
        broker.do(files, step, "a")


def test_an_errand_that_was_not_offered_is_the_brokers_end(broker: Broker) -> None:
    broker.freeze()
    with pytest.raises(HostError, match="has ended"):
        broker.do(0, "names")


def test_the_dump_is_that_of_a_vm_of_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errands, "KVM_DEBUGFS", tmp_path)
    monkeypatch.setattr(os, "getppid", lambda: 17)
    table = tmp_path / "17-5" / "stage2_page_tables"
    table.parent.mkdir()
    table.write_text("table")
    _, (fd,) = errands.Stage2([]).open(5)
    with os.fdopen(fd) as file:
        assert file.read() == "table"
    with pytest.raises(ValueError, match="invalid literal"):
        errands.Stage2([]).open("5/../../x")  # type: ignore[arg-type]
