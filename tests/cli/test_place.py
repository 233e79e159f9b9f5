"""--host: where a command runs, and what its files are called there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.cli import place
from vmm.errors import UserError


@pytest.mark.parametrize(
    ("typed", "files", "there"),
    [
        ("/home/me/guest.img", ["/home/me/guest.img"], "/home/me/guest.img"),
        ("guest.img", ["guest.img"], "guest.img"),
        ("/var/guest.img", ["/var/guest.img"], "/host/var/guest.img"),
        ("--initrd=/usr/i.cpio", ["/g", "/usr/i.cpio"], "--initrd=/host/usr/i.cpio"),
        ("-i/usr/i.cpio", ["/usr/i.cpio"], "-i/host/usr/i.cpio"),
        ("console=/usr/i.cpio", ["/usr/i.cpio"], "console=/usr/i.cpio"),
        ("quiet", ["/var/guest.img"], "quiet"),
        ("--share=/usr/d:tag,ro", ["/usr/d"], "--share=/host/usr/d:tag,ro"),
        ("/usr/d:tag", ["/usr/d"], "/host/usr/d:tag"),
        ("--disk=/d", ["/d"], "--disk=/d"),
        ("1:0.0,rom=/usr/r,bind", ["/usr/r"], "1:0.0,rom=/host/usr/r,bind"),
    ],
)
def test_a_file_gets_the_name_that_the_lab_host_has_for_it(
    monkeypatch: pytest.MonkeyPatch, typed: str, files: list[str], there: str
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr(os.path, "realpath", lambda path: str(Path("/home/me") / path))
    monkeypatch.setattr(os.path, "abspath", lambda path: str(Path("/home/me") / path))
    assert place._visible(typed, [Path(file) for file in files]) == there


def test_a_link_is_followed_here_because_it_may_lead_elsewhere_there(tmp_path: Path) -> None:
    (tmp_path / "guest.img").symlink_to("/usr/share/guest.img")
    link = tmp_path / "guest.img"
    assert place._visible(str(link), [link]) == "/host/usr/share/guest.img"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["run", "--host", "lab", "image"], ["run", "image"]),
        (["run", "image", "--host=lab:nofwb", "-c", "2"], ["run", "image", "-c", "2"]),
        (["run", "--", "--host"], ["run", "--", "--host"]),
    ],
)
def test_the_command_in_the_lab_host_is_the_same_without_host(
    typed: list[str], kept: list[str]
) -> None:
    assert place._without_host(typed) == kept


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--host moon: no such host; use auto, native, lab"):
        place.is_native("moon")


def test_native_and_lab_are_what_they_say() -> None:
    assert place.is_native("native")
    assert not place.is_native("lab")
    assert not place.is_native("lab:nofwb")
