"""Fixtures: a host's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vfio.pci_tree import Tree
from vmm.vfio import binding


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree(tmp_path)
    monkeypatch.setattr(binding, "_write", tree.write)
    return tree
