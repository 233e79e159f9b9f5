"""Cache entries: whole or not there, whatever happens to those who build them."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.lab import cache


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyvmm"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.root() == Path.home() / ".cache/pyvmm"


def test_an_entry_is_built_once(root: Path) -> None:
    built = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_text("content")

    for _ in range(2):
        assert cache.entry(root / "kind/name", build).read_text() == "content"
    assert len(built) == 1
    assert names(root / "kind") == ["name"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_no_part_and_a_usable_cache(root: Path, number: int) -> None:
    def fill(path: Path) -> None:
        path.mkdir()
        (path / "part").write_text("part")
        raise OSError(number, os.strerror(number))

    with pytest.raises(HostError, match=r"no space left in .* while writing name; free some"):
        cache.entry(root / "kind/name", fill)
    assert names(root / "kind") == []
    cache.entry(root / "kind/name", Path.touch)
    assert names(root / "kind") == ["name"]


def test_any_failure_leaves_no_part(root: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("part")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry(root / "kind/name", fail)
    assert names(root / "kind") == []


def test_what_a_killed_builder_left_is_removed(root: Path) -> None:
    (root / "kind/.name.partial").mkdir(parents=True)
    (root / "kind/.name.partial/part").touch()
    cache.entry(root / "kind/name", Path.mkdir)
    assert names(root / "kind") == ["name"]
    assert names(root / "kind/name") == []


def test_a_cache_that_cannot_be_written_is_an_error_that_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    with pytest.raises(HostError, match=r"/dev/null/cache/pyvmm: can't write .*XDG_CACHE_HOME"):
        cache.entry(cache.root() / "kind/name", Path.touch)


def _build_slowly(path: Path) -> None:
    with path.open("x") as file:  # fails if another one is at it
        file.write(str(os.getpid()))


def _enter(path: Path) -> None:
    cache.entry(path, _build_slowly)


def test_processes_that_want_the_same_entry_build_it_once(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_enter, args=(root / "kind/name",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert names(root / "kind") == ["name"]


def test_json_is_replaced_whole_and_private(root: Path) -> None:
    path = root / "record.json"
    assert cache.read_json(path) == {}
    cache.write_json(path, {"a": 1})
    assert cache.read_json(path) == {"a": 1}
    with pytest.raises(TypeError):
        cache.write_json(path, {"a": object()})
    assert cache.read_json(path) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(root) == ["record.json"]


def test_digests_tell_contents_apart() -> None:
    assert cache.digest(["a", "b"]) == cache.digest(("a", "b"))
    assert cache.digest("a", "b") != cache.digest("ab")


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_cache_that_others_can_write_is_refused(root: Path, mode: int) -> None:
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(HostError, match=f"^{root}: others can write it.*chmod go-w {root}"):
        cache.root()
    root.chmod(mode & ~0o022)
    assert cache.root() == root


def test_a_cache_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(mode=0o755)
    owner = root.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner:
        with pytest.raises(HostError, match=f"^{root}: it belongs to another user"):
            cache.root()
    else:
        assert cache.root() == root, "root can write everything"
        os.chown(root, 1234, -1)
        with pytest.raises(HostError, match=f"^{root}: it belongs to another user"):
            cache.root()


def test_a_cache_is_made_for_its_owner_alone(root: Path) -> None:
    before = os.umask(0)
    try:
        with cache.lock("first"):
            assert root.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
