"""Debian packages: where from, which ones, and what went wrong. No network here."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmm.errors import HostError, UserError
from vmm.lab import cache
from vmm.lab.debian import apt, aptsources
from vmm.lab.debian.aptsources import parse_targets


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyvmm"


def stanza(uri: str, release: str, origin: str = "Debian", component: str = "main") -> str:
    lines = [f"Repo-URI: {uri}", f"Release: {release}", f"Component: {component}"]
    return "\n".join([*lines, f"Origin: {origin}"] if origin else lines) + "\n"


MIRROR = "http://mirror.example/debian/"
SECURITY = "http://mirror.example/debian-security/"


def test_the_mirror_is_the_one_that_apt_uses() -> None:
    text = "\n".join(
        [
            stanza("https://other.example/", "nodistro", "Other"),
            stanza(MIRROR, "bookworm-updates"),
            stanza(SECURITY, "bookworm-security"),
            stanza("http://contrib.example/", "bookworm", component="contrib"),
            stanza(MIRROR, "bookworm"),
        ]
    )
    assert parse_targets(text) == aptsources.Mirror(MIRROR, SECURITY)


def test_a_mirror_is_found_before_its_index_was_ever_downloaded() -> None:
    assert parse_targets(stanza(MIRROR, "trixie", origin="")) == aptsources.Mirror(MIRROR)


@pytest.mark.parametrize("text", ["", stanza("https://other.example/", "trixie", "Ubuntu")])
def test_a_machine_without_a_debian_mirror_is_told_so(text: str) -> None:
    with pytest.raises(HostError, match="uses no Debian mirror"):
        parse_targets(text)


@pytest.mark.parametrize(("suite", "arch"), [("sid", "arm64"), ("trixie", "riscv64")])
def test_an_unknown_suite_or_architecture_is_a_user_error(suite: str, arch: str) -> None:
    with pytest.raises(UserError, match=f"no suite {suite} for {arch}; it knows bookworm, trixie"):
        apt.fetch(["busybox"], suite=suite, arch=arch)


def test_what_is_cached_needs_neither_network_nor_apt(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "debs").mkdir(parents=True)
    (root / "debs/a_1_arm64.deb").touch()
    cache.write_json(root / "apt/resolved.json", {"trixie arm64 a": {"files": ["a_1_arm64.deb"]}})
    monkeypatch.setenv("PATH", "")
    (path,) = apt.fetch(["a"], suite="trixie", arch="arm64")
    assert path == root / "debs/a_1_arm64.deb"


def test_without_apt_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="apt-get is not installed"):
        apt.fetch(["a"], suite="trixie", arch="arm64")


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "E: Failed to fetch http://m/InRelease  Temporary failure resolving 'm'",
            "can't reach the package mirror: .*resolving 'm'; .*check the network",
        ),
        ("W: GPG error: http://m trixie InRelease: NO_PUBKEY 6ED0E7B82643E131", "can't verify"),
        ("E: The repository 'http://m trixie Release' is not signed.", "can't verify"),
        ("E: Write error - write (28: No space left on device)", "no space left in .*free some"),
        ("E: Unable to locate package nope", "apt-get failed: Unable to locate package nope"),
    ],
)
def test_apts_failures_become_one_line_that_says_what_to_do(stderr: str, message: str) -> None:
    error = apt._AptError(f"W: something else\n{stderr}\n")
    with pytest.raises(HostError, match=message):
        raise error
    assert "\n" not in str(error)


PACKAGES = """\
linux-binary-7.2.12+deb13-arm64
linux-binary-7.10.1+deb13-arm64
linux-binary-7.3.4+deb13-arm64
linux-binary-7.11.1+deb13-arm64-16k
linux-binary-7.12.1+deb13-rt-arm64
linux-image-7.99.1+deb13-arm64
"""


def test_the_newest_is_by_numbers_and_of_the_same_flavour(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "apt/trixie-arm64").mkdir(parents=True)
    (root / "apt/trixie-arm64/updated").touch()
    monkeypatch.setattr(apt, "run", lambda _argv: PACKAGES)

    def newest(pattern: str) -> str:
        return apt.newest(pattern, suite="trixie-backports", arch="arm64")

    assert newest("linux-binary-7.*-arm64") == "linux-binary-7.10.1+deb13-arm64"
    with pytest.raises(HostError, match=r"no package linux-binary-8.\*-arm64 in trixie-backports"):
        newest("linux-binary-8.*-arm64")


def test_forgetting_asks_the_mirror_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_the_newest_is_by_numbers_and_of_the_same_flavour(root, monkeypatch)
    apt.forget()
    assert cache.read_json(root / "apt/resolved.json") == {}
    assert not (root / "apt/trixie-arm64/updated").exists()


# --- an apt that would not end --------------------------------------------------------------------


@pytest.fixture
def archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> apt.Archive:
    monkeypatch.setattr(apt, "find_mirror", lambda: aptsources.Mirror(MIRROR))
    monkeypatch.setattr(apt, "keyring", lambda: root / "keys")
    return apt.Archive("trixie", "arm64")


def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin/apt-get"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


STUCK = """while sleep 0.05; do echo "dlstatus:1:8.5:Retrieving file 1 of 3"; done"""
"""apt tells its progress twice a second, even if there is none."""


def test_an_apt_without_progress_is_ended(
    archive: apt.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(tmp_path, monkeypatch, STUCK)
    monkeypatch.setattr(apt, "_PATIENCE", 0.5)
    began = time.monotonic()
    with pytest.raises(HostError, match=r"apt made no progress for 0.5 s; check the network"):
        archive.update()
    assert time.monotonic() - began < 10


def test_an_apt_that_says_nothing_is_ended(
    archive: apt.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(apt, "_PATIENCE", 0.5)
    with pytest.raises(HostError, match="no progress"):
        archive.update()


def test_a_slow_apt_is_not(
    archive: apt.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(
        tmp_path, monkeypatch, 'for i in 1 2 3 4 5; do echo "dlstatus:1:$i.0:"; sleep 0.3; done'
    )
    monkeypatch.setattr(apt, "_PATIENCE", 1.2)
    archive.update()


def test_too_little_room_is_said_before_apt_runs(
    archive: apt.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 MB left apt ran for over four minutes."""
    fake_apt(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=8 << 20))
    with pytest.raises(HostError, match=r"the package index takes 96 MiB in .*, of which 8 are"):
        archive.update()


def test_packages_are_downloaded_if_there_is_room_for_them(
    archive: apt.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(tmp_path, monkeypatch, f"echo \"'http://a' a_1_arm64.deb {200 << 20} SHA256:0\"")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=205 << 20))
    archive.root.mkdir(parents=True)
    with pytest.raises(HostError, match=r"a takes 216 MiB in .*, of which 205 are free; free some"):
        archive.download(["a_1_arm64.deb"], "a")
