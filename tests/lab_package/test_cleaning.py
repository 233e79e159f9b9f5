"""`pyvmm lab clean`: what goes is what nobody uses, and it is said how much that was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm.cli import pyvmm
from vmm.lab import cache
from vmm.lab.host import cleaning, state

SIZE = 1 << 20
Make = Callable[[str], Path]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "pyvmm"


@pytest.fixture
def make(root: Path) -> Make:
    """``make("guests/one")`` makes an entry of one megabyte."""

    def make(name: str) -> Path:
        def build(path: Path) -> None:
            path.write_bytes(b"x" * SIZE)

        return cache.entry(root / name, build)

    return make


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``later(days)``: so many days pass."""
    now = time.time()
    return lambda days: monkeypatch.setattr(time, "time", lambda: now + days * cleaning.DAY)


def clean(*words: str) -> list[str]:
    done = CliRunner().invoke(pyvmm, ["lab", "clean", *words])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_what_was_not_used_for_long_is_removed_and_counted(
    root: Path, make: Make, later: Callable[[float], None]
) -> None:
    make("guests/one")
    make("guests/two")
    make("rootfs/base")
    later(29)
    assert clean() == ["removed 0 entries, 0 MB; 3 entries, 3 MB stay"]
    later(31)
    assert clean() == [
        "guests: 2 entries, 2 MB",
        "rootfs: 1 entry, 1 MB",
        "removed 3 entries, 3 MB; 0 entries, 0 MB stay",
    ]
    assert not list(root.glob("guests/*"))


@pytest.mark.parametrize("name", ["guests/one", "kernel/linux-7/source", "kernel/images/lab-1"])
def test_use_makes_an_entry_young(
    make: Make, name: str, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(name)
    touched: list[Path] = []
    utime = os.utime

    def touch(path: Path, ns: tuple[int, int]) -> None:
        touched.append(path)
        utime(path, ns=ns)

    monkeypatch.setattr(os, "utime", touch)
    before = path.stat()
    make(name)
    assert path in touched
    assert path.stat().st_mtime == before.st_mtime, "what is pruned by age of building is not"
    assert path.stat().st_ctime_ns > before.st_ctime_ns
    if name == "kernel/linux-7/source":
        assert path.parent in touched


def test_what_was_handed_out_just_now_stays(make: Make, later: Callable[[float], None]) -> None:
    path = make("guests/one")
    assert clean("--older-than", "0")[-1] == "removed 0 entries, 0 MB; 1 entry, 1 MB stay"
    later(0.1)
    clean("--older-than", "0")
    assert not path.exists()


@pytest.mark.parametrize("way", ["argument", "option", "open", "directory"])
def test_what_a_process_uses_stays(
    make: Make, root: Path, later: Callable[[float], None], way: str
) -> None:
    if way == "directory":
        path = cache.entry(root / "guests/one-more", Path.mkdir)
    else:
        path = make("guests/one-more")
    other = make("guests/one")
    words = {"argument": [str(path)], "option": [f"file={path},ro"]}
    script = "print('runs', flush=True); import time; time.sleep(60)"
    with (
        (path if way == "open" else Path(os.devnull)).open("rb") as stdin,
        subprocess.Popen(
            [sys.executable, "-c", script, *words.get(way, [])],
            stdin=stdin,
            stdout=subprocess.PIPE,
            cwd=path if way == "directory" else None,
        ) as user,
    ):
        assert user.stdout
        user.stdout.readline()
        later(100)
        try:
            clean()
        finally:
            user.kill()
    assert path.exists()
    assert not other.exists(), "one that is used has a name that begins like it"


def test_packages_of_hosts_stay_while_a_host_runs(
    make: Make, later: Callable[[float], None]
) -> None:
    path = make("tools/host-passt")
    directory = state.hosts_directory() / "fwb"
    directory.mkdir()
    state.save(directory, state.State("fwb", state.myself(), keep=False))
    later(100)
    clean()
    assert path.exists()
    state.discard(directory)
    clean()
    assert not path.exists()


def test_what_is_being_built_stays(root: Path, later: Callable[[float], None]) -> None:
    partial = root / "guests/.one.partial"
    with cache.lock("guests-one"):
        partial.parent.mkdir(parents=True)
        partial.write_text("half")
        later(100)
        clean()
        assert partial.exists()
    clean()
    assert not partial.exists(), "its builder was killed"


def test_indexes_and_locks_are_no_entries(root: Path, later: Callable[[float], None]) -> None:
    (root / "apt/trixie-arm64").mkdir(parents=True)
    with cache.lock("one"):
        pass
    later(100)
    clean()
    assert (root / "apt/trixie-arm64").exists()
    assert (root / "locks/one").exists()


# --- the bound --------------------------------------------------------------------------------


def test_above_its_bound_the_longest_unused_go_until_it_is_kept(
    make: Make,
    later: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cleaning, "BOUND", 2 * SIZE + SIZE // 2)
    first = make("guests/one")
    time.sleep(0.02)
    others = [make("guests/two"), make("rootfs/base")]
    cleaning.keep_bound()
    assert first.exists(), "used today"
    later(8)
    cache.built.append(first)
    cleaning.keep_bound()
    assert not first.exists()
    assert all(path.exists() for path in others)
    assert "removed 1 entry, 1 MB, not used for 7 days" in capsys.readouterr().err


def test_who_builds_nothing_does_not_look(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("guests/one")
    cache.built.clear()
    monkeypatch.setattr(cleaning, "clean", lambda *_, **__: pytest.fail("it looks"))
    cleaning.keep_bound()
