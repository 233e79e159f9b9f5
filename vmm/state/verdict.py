"""What `pyvmm compat diff` says of hosts: each pair each way, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import permutations
from typing import TYPE_CHECKING, Any

from vmm.state import baseline
from vmm.state.comparison import ID_CHANGE, Reason, notes, owed, refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from vmm.state.host_description import HostDescription


class Verdict(Enum):
    """Whether guests can move, and from which exit status a script learns it."""

    COMPATIBLE = "compatible"
    WITH_BASELINE = "compatible with a baseline"
    INCOMPATIBLE = "incompatible"

    @property
    def status(self) -> int:
        """The exit status of ``pyvmm compat diff``."""
        return {Verdict.COMPATIBLE: 0, Verdict.WITH_BASELINE: 10, Verdict.INCOMPATIBLE: 11}[self]


@dataclass(frozen=True)
class Move:
    """A move of a guest from one host to another.

    verdict     WITH_BASELINE: a guest that starts with one can move, others cannot
    reasons     why a guest that has seen all of the source cannot move
    overridden  reasons that the user does not count
    remaining   why not even a baseline helps
    owed        cache maintenance
    """

    source: str
    destination: str
    verdict: Verdict
    reasons: tuple[Reason, ...]
    overridden: tuple[Reason, ...]
    remaining: tuple[Reason, ...]
    owed: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield lines of text."""
        yield f"{self.source} -> {self.destination}: {self.verdict.value}"
        for reason in self.overridden:
            yield f"  overridden, which {ID_CHANGE}: {reason}"
        if self.verdict is Verdict.INCOMPATIBLE:
            yield from (f"  because {reason}" for reason in self.remaining)
        if self.verdict is Verdict.WITH_BASELINE:
            yield from (f"  without: {reason}" for reason in self.reasons)
        if self.verdict is not Verdict.INCOMPATIBLE or self.overridden:
            yield from (f"  owed by the {each}" for each in self.owed)
        yield from (f"  note: {each}" for each in self.notes)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "source": self.source,
            "destination": self.destination,
            "verdict": self.verdict.value,
            **{
                name: [{"subject": one.subject, "text": one.text} for one in reasons]
                for name, reasons in (
                    ("reasons", self.reasons),
                    ("overridden", self.overridden),
                    ("remaining", self.remaining),
                )
            },
            "owed": list(self.owed),
            "notes": list(self.notes),
        }


def move(
    names: tuple[str, str],
    source: HostDescription,
    destination: HostDescription,
    allowed: Collection[str] = (),
) -> Move:
    """Judge a move; *names* are the hosts', *allowed* the subjects that the user overrides."""
    every = refusal(source, destination)
    reasons = [one for one in every if one.subject not in allowed]
    remaining: list[Reason] = []
    if reasons:
        cpu = baseline.common([source, destination])
        left = {reason.subject for _, reason in baseline.obstacles([source, destination], cpu)}
        remaining = [one for one in reasons if one.subject in left]
    verdict = (
        Verdict.INCOMPATIBLE
        if remaining
        else Verdict.WITH_BASELINE
        if reasons
        else Verdict.COMPATIBLE
    )
    return Move(
        *names,
        verdict,
        tuple(reasons),
        tuple(one for one in every if one.subject in allowed),
        tuple(remaining),
        tuple(owed(source, destination)),
        tuple(notes(source, destination)),
    )


def moves(
    hosts: Sequence[tuple[str, HostDescription]], allowed: Collection[str] = ()
) -> list[Move]:
    """Judge each move among *hosts*, names and descriptions."""
    return [
        move((one_name, other_name), one, other, allowed)
        for (one_name, one), (other_name, other) in permutations(hosts, 2)
    ]


def worst(verdicts: Collection[Verdict]) -> Verdict:
    """Return the verdict of a set of hosts among which each move must be possible."""
    return max(verdicts, key=lambda one: one.status)
