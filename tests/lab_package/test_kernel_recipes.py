"""What the lab's kernels are made of: fragments and patches that are reviewed by rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmm.lab.kernel import build, flavour

LAB = Path(flavour.__file__).parent
FRAGMENTS = sorted((LAB / "configs").iterdir())
PATCHES = sorted((LAB / "patches").iterdir())


def test_every_fragment_and_patch_is_used() -> None:
    recipes = flavour.FLAVOURS.values()
    assert {path.name for path in FRAGMENTS} == {name for r in recipes for name in r.fragments}
    assert {path.name for path in PATCHES} == {name for r in recipes for name in r.patches}


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_every_group_of_options_says_why_it_is_there(path: Path) -> None:
    for group in re.split(r"\n\s*\n", path.read_text().strip()):
        assert group.startswith("#"), group
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"(#.*|CONFIG_[A-Z0-9_]+=(y|\d+)|)", line), line


def test_no_option_is_given_twice() -> None:
    options = build.requested([path.read_text() for path in FRAGMENTS])
    names = [line.partition("=")[0] for line in options]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.name)
def test_a_patch_reads_as_one_would_post_it(path: Path) -> None:
    text = path.read_text()
    message, _, diff = text.partition("\n---\n")
    assert message.startswith("SPDX-License-Identifier: GPL-2.0\n")
    assert re.search(r"^Subject: \[PATCH RFC\] KVM: arm64: ", message, re.MULTILINE)
    assert all(len(line) <= 80 for line in message.splitlines() if "Subject" not in line)
    assert re.findall(r"^--- a/(\S+)", diff, re.MULTILINE) == re.findall(
        r"^\+\+\+ b/(\S+)", diff, re.MULTILINE
    )


def test_the_flag_is_not_where_half_the_tree_would_see_it() -> None:
    diff = (LAB / "patches" / flavour.WRITE_BACK).read_text()
    assert "+#define KVM_MEM_ENABLE_CACHEABLE_PFNMAP\t(1UL << 3)" in diff
    assert "include/uapi" not in diff
