"""The repository has no files of others, no mirror's name and no path of a developer's machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]

TOP = {"LICENSE", "README.md", "cdefs", "examples", "pyproject.toml", "scripts", "tests", "vmm"}

OUR_LICENSE = "SPDX-License-Identifier: Apache-2.0"
EXEMPT = (
    "LICENSE:",
    "tests/repository/test_repository.py:",
    "tests/lab_package/test_kernel_recipes.py:",  # which tests that the next do say GPL
    "vmm/lab/kernel/patches/",  # to Linux, so under its license
)

# Written so that they do not match themselves.
MIRRORS = re.compile(r"\b(deb|ftp[\w.]*|cdn[\w.-]*|security|archive|snapshot)\.debian\.(org|net)")
PLACES = re.compile(r"(?<![\w.$}-])/(work\b|root/[\w.]|home/(?!me/)\w+/|opt/(pypi|wheels))")
FOREIGN = re.compile(r"SPDX-License-Identifier:|\bCopyright\b|\(C\) \d{4}|_UAPI[_A-Z]*_H\b")


@cache
def files() -> list[PurePosixPath]:
    """Return the files that are in the repository, or untracked and not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [PurePosixPath(name) for name in listing.split("\0") if name]
    return [path for path in paths if (ROOT / path).exists()]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """Return the lines that match *pattern*, each as "file:line: text"."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path in files()
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_the_top_level_is_the_agreed_one() -> None:
    found = {path.parts[0] for path in files() if not path.parts[0].startswith(".")}
    assert found == TOP


def test_no_mirror_is_named() -> None:
    assert lines_with(MIRRORS) == []


def test_the_mirror_of_this_very_machine_is_not_named() -> None:
    if not shutil.which("apt-get"):
        pytest.skip("apt-get is not installed")
    told = subprocess.run(["apt-get", "indextargets"], check=True, capture_output=True, text=True)
    uris = re.findall(r"^Repo-URI: (.*)$", told.stdout, re.MULTILINE)
    hosts = {urlsplit(uri).hostname for uri in uris} - {None}
    named = re.compile("|".join(rf"\b{re.escape(str(host))}\b" for host in hosts) or "(?!)")
    assert lines_with(named) == []


def test_no_path_of_a_developers_machine_is_named() -> None:
    assert lines_with(PLACES) == []


def test_no_header_and_no_source_is_somebody_elses() -> None:
    for path in files():
        if path.suffix in {".c", ".h", ".S"} and not path.name.endswith(".cdef.h"):
            first = (ROOT / path).read_text().partition("\n")[0]
            assert OUR_LICENSE in first, f"{path} does not say that it is ours"
    foreign = [
        line
        for line in lines_with(FOREIGN)
        if OUR_LICENSE not in line and not line.startswith(EXEMPT)
    ]
    assert foreign == []


def test_all_files_are_text_and_small() -> None:
    """A blob could hide anything; big files are fetched or generated."""
    for path in files():
        data = (ROOT / path).read_bytes()
        assert len(data) < 256 << 10, f"{path} is big"
        assert b"\0" not in data, f"{path} is no text"
        data.decode()
