"""What a program behind the lab's mounts can write: of all that this user can, only what is opened.

`sleep` stands for QEMU: what it sees is asked by entering its namespaces.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmm.lab import cache
from vmm.lab.host import export
from vmm.run_directory import run_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
SHARED = Path(f"/dev/shm/pyvmm-{os.getpid()}")
"""A file on another file system, where all may write."""
ROOTS = Path(f"/var/tmp/pyvmm-{os.getpid()}")
"""The same on the root's file system, most often."""
READY = 30.0
"""Seconds in which the program has to be there."""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the cache and the run-time files below *tmp_path*/home."""
    for name, place in (("XDG_CACHE_HOME", "cache"), ("XDG_RUNTIME_DIR", "run")):
        directory = tmp_path / "home" / place
        directory.mkdir(parents=True, mode=0o700)
        monkeypatch.setenv(name, str(directory))
    cache.root().mkdir(mode=0o700)


@contextmanager
def program(writable: Path, own: Path) -> Iterator[int]:
    """Yield the process id of a program that can write *writable* and *own*."""
    argv = export.confined(["sleep", "1000"], [writable], [own])
    if argv[0] == "sleep":
        pytest.skip("no mount namespace is to be had here")
    started = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + READY
        while Path(f"/proc/{started.pid}/comm").read_text() != "sleep\n":
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield started.pid
    finally:
        started.kill()
        started.wait()


def touch(pid: int, path: Path) -> str:
    """Make a file *path* where the process *pid* is; return what is said against it."""
    user = ["--user", "--preserve-credentials"] if os.geteuid() else []
    enter = ["nsenter", f"--target={pid}", "--mount", *user, "--"]
    done = subprocess.run([*enter, "touch", str(path)], check=False, capture_output=True, text=True)
    return done.stderr.strip().rpartition(": ")[2]


DENIED = "Read-only file system"


def test_only_the_directory_and_the_named_files_can_be_written(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "else where"
    for directory in (here, elsewhere):
        directory.mkdir()
    log = elsewhere / "console.log"
    log.touch()
    with program(here, log) as pid:
        assert touch(pid, here / "file") == ""
        assert touch(pid, log) == ""
        for path in (elsewhere / "file", tmp_path / "file", SHARED):
            assert touch(pid, path) == DENIED, path
        assert (here / "file").exists()


def test_a_later_command_opens_its_own(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second \\ one", "third"))
    for directory in (first, second, third):
        directory.mkdir()
    disk = third / "disk"
    disk.touch()
    with program(first, disk) as pid:
        export.allow(pid, [second, disk, third / "not there" / "file"])
        assert touch(pid, second / "file") == ""
        assert touch(pid, third / "file") == DENIED
        export.allow(pid, [third / "new"])  # is not there: its directory
        assert touch(pid, third / "new") == ""
        assert touch(pid, tmp_path / "file") == DENIED
        before = Path(f"/proc/{pid}/mountinfo").read_text()
        export.allow(pid, [second, third / "new", Path("/dev/null"), Path("/dev/none/file")])
        assert Path(f"/proc/{pid}/mountinfo").read_text() == before, (
            "nothing is opened twice, and no device"
        )


def test_a_file_that_was_replaced_here_is_opened_anew(tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for directory in (here, other):
        directory.mkdir()
    disk = other / "disk"
    disk.touch()
    with program(here, disk) as pid:
        disk.unlink()
        disk.touch()
        assert touch(pid, disk) == DENIED
        export.allow(pid, [disk])
        assert touch(pid, disk) == ""


def test_what_is_run_and_recorded_stays_read_only(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    program_file = cache.root() / "tools"
    program_file.touch()
    with program(here, here) as pid:
        export.allow(pid, [tmp_path, program_file, cache.root(), Path("/")])
        assert touch(pid, tmp_path / "file") == ""
        assert touch(pid, program_file) == DENIED
        assert touch(pid, cache.root() / "file") == DENIED
        assert touch(pid, run_directory() / "file") == DENIED
        for path in (SHARED, ROOTS):
            assert touch(pid, path) == DENIED
        assert os.statvfs(f"/proc/{pid}/root/").f_flag & os.ST_RDONLY


def test_nothing_is_opened_for_a_program_that_has_ended(tmp_path: Path) -> None:
    with program(tmp_path, tmp_path) as pid:
        pass
    export.allow(pid, [tmp_path])


def test_the_program_has_no_capability_to_mount(tmp_path: Path) -> None:
    with program(tmp_path, tmp_path) as pid:
        status = Path(f"/proc/{pid}/status").read_text()
        sets = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
        assert {int(value, 16) >> 5 for value in sets.values()} == {0}, sets
        assert "NoNewPrivs:\t1" in status


def test_what_is_read_only_here_stays_so(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("takes root")
    here, frozen, below = tmp_path / "here", tmp_path / "frozen", tmp_path / "here" / "be low"
    for directory in (here, frozen, below):
        directory.mkdir()
    script = (
        "mount --make-rshared / &&"
        f" mount -t tmpfs none '{below}' && mount --bind {frozen} {frozen} &&"
        f" mount -o remount,bind,ro {frozen} &&"
        f" exec {sys.executable} -m pytest -q -p no:cacheprovider -k within {__file__}"
    )
    environment = {**os.environ, "EXPORT_HERE": str(here), "EXPORT_FROZEN": str(frozen)}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


if "EXPORT_HERE" in os.environ:  # for the test above, which runs it within mounts of its own

    def test_within_its_mounts(tmp_path: Path) -> None:
        here, frozen = Path(os.environ["EXPORT_HERE"]), Path(os.environ["EXPORT_FROZEN"])
        before = Path("/proc/self/mountinfo").read_text()
        with program(here, tmp_path) as pid:
            assert touch(pid, here / "be low" / "file") == "", "a mount below the directory"
            export.allow(pid, [frozen, frozen / "file"])
            assert touch(pid, frozen / "file") == DENIED
            assert Path("/proc/self/mountinfo").read_text() == before


def test_a_user_who_is_not_root_has_the_same() -> None:
    if os.geteuid():
        pytest.skip("all the others are this test")
    tests = "only_the_directory or later_command or stays_read_only or no_capability"
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests, __file__)
    with tempfile.TemporaryDirectory() as base:
        os.chown(base, NOBODY, NOBODY)
        done = subprocess.run(
            [*user, *argv, f"--basetemp={base}/pytest"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": base},
            cwd=Path(__file__).parents[2],
        )
    assert "4 passed" in done.stdout or "4 skipped" in done.stdout, done.stdout + done.stderr
