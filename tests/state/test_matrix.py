"""Every move among the hosts of the lab, as a table, in ``golden/matrix.txt``."""

from __future__ import annotations

from tests.state.golden import MATRIX, WRITE, golden, names
from vmm.lab.host.profiles import PROFILES
from vmm.state.verdict import Verdict, move

LEGEND = """Guests of the host of each line, moved to the host of each column:
=  can move     b  can move if they started with a baseline of the two
F  cannot: ID_AA64MMFR2_EL1.FWB differs     G  cannot: the interrupt controllers differ
N  cannot: Linux 6.12 shows ID_AA64MMFR2_EL1.NV of the CPU, later ones show 0
"""
LETTERS = {"ID_AA64MMFR2_EL1.FWB": "F", "GIC": "G", "ID_AA64MMFR2_EL1.NV": "N"}


def letter(source: str, destination: str) -> str:
    found = move((source, destination), golden(source), golden(destination))
    if found.verdict is Verdict.INCOMPATIBLE:
        return LETTERS[found.remaining[0].subject]
    return "=" if found.verdict is Verdict.COMPATIBLE else "b"


def matrix() -> str:
    """Return the table's text."""
    width = max(map(len, names()))
    numbers = " ".join(f"{number:2}" for number, _ in enumerate(names(), 1))
    lines = [f"{'':{width + 3}} {numbers}"]
    for number, source in enumerate(names(), 1):
        cells = "  ".join(letter(source, destination) for destination in names())
        lines.append(f"{number:2} {source:{width}}  {cells}")
    return LEGEND + "\n" + "\n".join(lines) + "\n"


def test_every_profile_has_its_description() -> None:
    assert set(names()) == set(PROFILES)


def test_the_matrix_is_as_it_was() -> None:
    if WRITE:
        MATRIX.write_text(matrix())
    assert matrix() == MATRIX.read_text()


def test_no_move_between_fwb_and_nofwb_is_possible() -> None:
    """Without the table: whatever else is there, FWB is the first reason, both ways."""
    for source in names():
        for destination in names():
            differ = golden(source).cacheable.fwb is not golden(destination).cacheable.fwb
            assert (letter(source, destination) == "F") is differ
