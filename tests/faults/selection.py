"""Which system calls of a run fail, one at a time."""

from __future__ import annotations

from tests.faults.supervisor import WATCHED, Fault


def chosen(calls: list[str], most: int) -> list[int]:
    """Return which of *calls* fail: about *most* of a kind, or all of them if *most* is 0.

    The first ones of a kind do, and others at even distances.
    """
    found = []
    for name in sorted(set(calls)):
        places = [index for index, call in enumerate(calls) if call == name]
        first, rest = places[: most // 2], places[most // 2 :]
        found += first + rest[:: max(1, 2 * len(rest) // most) if most else 1]
    return sorted(found)


def faults(calls: list[str], most: int) -> list[Fault]:
    """Return each fault of the chosen *calls*: each error that such a call can have."""
    return [
        Fault(index, calls[index], error)
        for index in chosen(calls, most)
        for error in WATCHED[calls[index]].errors
    ]
