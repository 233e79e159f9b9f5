"""What a target of scripts/fuzz is, and the inputs that Hypothesis makes for it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from tests.fuzz.given import Given

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEEDS, SEED_SIZE = 8, 2048
"""Inputs that a corpus starts with, and their bytes, where inputs are choices."""


class Target(NamedTuple):
    """Code under attack.

    name    as scripts/fuzz has it
    what    what the attack is, and what has to hold, in a clause
    run     attacks once, by the bytes that it is given; raises whatever should not be
    seeds   returns the corpus to start with: valid samples, made by code
    most    bytes of the largest input
    """

    name: str
    what: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    most: int = 4096


def random_seeds() -> Sequence[bytes]:
    """Return inputs that are choices: any bytes are."""
    return [Random(seed).randbytes(SEED_SIZE) for seed in range(SEEDS)]  # noqa: S311


def by_choices(name: str, what: str, attack: Callable[[Given], object]) -> Target:
    """Return the target whose *attack* chooses what it does by its input."""
    return Target(name, what, lambda data: attack(Given(data)), random_seeds)


def by_property(name: str, what: str, test: Any) -> Target:
    """Return the target that is a test with Hypothesis's ``@given``, of which input chooses."""
    return Target(name, what, test.hypothesis.fuzz_one_input, random_seeds, 8192)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return Hypothesis's way to make inputs: any, seeds with edits and cuts, and two spliced."""
    seeds = st.sampled_from(list(target.seeds()))
    place = st.integers(0, target.most - 1)
    edit = st.tuples(place, st.integers(0, 8), st.binary(max_size=8))
    edited = st.tuples(seeds, st.lists(edit, min_size=1, max_size=6)).map(lambda made: _edit(*made))
    spliced = st.tuples(seeds, seeds, place, place).map(
        lambda made: made[0][: made[2]] + made[1][made[3] :]
    )
    cut = st.tuples(seeds, place).map(lambda made: made[0][: made[1]])
    chosen = edited | st.binary(max_size=256) | spliced | cut | edited
    return chosen.map(lambda data: data[: target.most])


def _edit(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Replace as many bytes at each place, counted round, by others."""
    for where, size, new in edits:
        at = where % (len(data) + 1)
        data = data[:at] + new + data[at + size :]
    return data
