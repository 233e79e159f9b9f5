"""Each target of scripts/fuzz, for a moment: its corpus, and a few inputs of Hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.target import Target, inputs
from tests.fuzz.targets import TARGETS

EXAMPLES = 12


def test_there_are_targets_for_all_that_others_write() -> None:
    assert len(TARGETS) >= 40


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_does_no_harm_and_is_small(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    assert sum(map(len, seeds)) <= 1 << 16
    for seed in seeds:
        assert len(seed) <= target.most
        target.run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_does_any_harm(name: str) -> None:
    target: Target = TARGETS[name]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(inputs(target))
    def attack(data: bytes) -> None:
        target.run(data)

    attack()
