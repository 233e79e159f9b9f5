"""The truth table as KTAP, version 1, for those who test kernels.

Each host is a test, and each slot a subtest: ``ok`` if the kernel answered as expected. Lines that
begin with ``#`` are the evidence. Source: Documentation/dev-tools/ktap.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.lab.host.matrix import compare, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm.lab.host.matrix import Matrix, Rows

VERSION: Final = "KTAP version 1"


def ktap(found: Matrix, expected: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[str]:
    """Yield the lines of *found*, judged by *expected*, a table like matrix.json."""
    yield VERSION
    yield f"1..{len(found)}"
    for number, (profile, rows) in enumerate(found.items(), 1):
        lines, good = _subtests(profile, rows, expected)
        yield from (f"  {line}" for line in lines)
        yield f"{'ok' if good else 'not ok'} {number} {profile}"


def _subtests(
    profile: str, rows: Rows, expected: Mapping[str, Mapping[str, Sequence[str]]]
) -> tuple[list[str], bool]:
    """Return the lines of one host, and whether all of its slots are as expected."""
    differences = compare({profile: rows}, expected)
    wrong = {(one.memory, one.flag): one for one in differences}
    missing = [one for one in differences if one.found == "no row"]
    lines = [VERSION, f"# Subtest: {profile}", f"1..{len(rows) + len(missing)}"]
    for number, row in enumerate(rows, 1):
        difference = wrong.get((row["memory"], row["flag"]))
        lines += [f"# {sentence}" for sentence in row["evidence"]]
        if difference:
            lines.append(f"# expected {difference.expected}, found {difference.found}")
        name = f"{row['memory']} {'with' if row['flag'] else 'without'} the flag: {outcome(row)}"
        lines.append(f"{'not ok' if difference else 'ok'} {number} {name}")
    for number, one in enumerate(missing, len(rows) + 1):
        lines.append(f"not ok {number} {one.memory}: no row")
    return lines, not differences
