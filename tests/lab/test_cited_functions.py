"""The kernel's functions that `pyvmm explain` names are in the kernel's source, where it says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from vmm.cli.explain import TABLE
from vmm.kvm import causes as kvm
from vmm.lab.debian import apt
from vmm.lab.kernel.flavour import FLAVOURS
from vmm.lab.kernel.source_tree import SourceTree
from vmm.vfio import causes as vfio

pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(3600)]

CITATION = re.compile(r"(?P<functions>[\w, ]+) \((?P<file>[\w./-]+)\)")


@cache
def source() -> Path:
    recipe = FLAVOURS["mainline"]
    package = apt.newest(recipe.package, suite=recipe.suite, arch="arm64")
    (deb,) = apt.fetch([package], suite=recipe.suite, arch="arm64")
    tree = SourceTree(deb)
    tree.unpack()
    return tree.source


def test_each_function_is_in_its_file() -> None:
    everything = [*TABLE.values(), *kvm.GENERAL.values(), *vfio.GENERAL.values()]
    cited = {cause.where for causes in everything for cause in causes if cause.where}
    assert len(cited) >= 40
    wrong = []
    for where in sorted(cited):
        found = CITATION.fullmatch(where)
        assert found is not None, where
        path = source() / found["file"]
        text = path.read_text() if path.exists() else ""
        wrong += [
            where
            for function in found["functions"].split(", ")
            if not re.search(rf"^\w.*\b{function}\(|^{function}\(", text, re.MULTILINE)
        ]
    assert wrong == []
