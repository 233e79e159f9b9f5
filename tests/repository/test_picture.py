"""vmm/house.svg is what scripts/picture draws, and its journeys go where the code goes."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.repository.layers import LAYERS, part
from tests.repository.test_layers import MODULES, imports, module, package

GROUND = set(LAYERS[0].parts)
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "picture"


def load() -> Any:
    loader = SourceFileLoader("picture", str(SCRIPT))
    spec = spec_from_loader("picture", loader)
    assert spec
    made = module_from_spec(spec)
    sys.modules["picture"] = made
    loader.exec_module(made)
    return made


picture = load()


def test_the_picture_is_what_the_script_draws() -> None:
    subprocess.run([sys.executable, SCRIPT, "--check"], check=True)


def test_the_picture_shows_every_part() -> None:
    drawn = picture.PICTURE.read_text()
    for name in (name for layer in LAYERS for name in layer.parts):
        assert f">{name}</text>" in drawn, name


def neighbours() -> set[frozenset[str]]:
    """Return the pairs of modules of which one imports the other, for types or late, too."""
    return {
        frozenset((module(path), found.module.removeprefix("vmm.")))
        for path in MODULES
        for found in imports(path.read_text(), package(path))
    }


def reach(pairs: set[frozenset[str]], step: str) -> set[str]:
    """Return the modules that import *step* or that it imports, and itself."""
    return {step}.union(*(pair for pair in pairs if step in pair))


@pytest.mark.parametrize("journey", picture.JOURNEYS, ids=lambda journey: journey.what)
def test_a_journey_goes_from_a_module_to_one_it_knows(journey: Any) -> None:
    """Directly, or by one module that knows both, as the machine knows bus and devices.

    Everybody knows the ground: it joins nothing.
    """
    pairs = {pair for pair in neighbours() if not any(part(name) in GROUND for name in pair)}
    there = {module(path) for path in MODULES}
    for before, after in pairwise(journey.steps):
        assert {before.module, after.module} <= there
        assert reach(pairs, before.module) & reach(pairs, after.module), (before, after)
