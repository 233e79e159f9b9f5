"""The truth table of cacheable PFNMAP is as vmm/lab/host/matrix.json has it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.lab_package.matrix_rows import rows
from vmm.lab.host import matrix
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import profiles

EXPECTED = matrix.load_expected()
KNOWN = {profile.name: profile for profile in profiles()}


def test_every_profile_has_an_expectation() -> None:
    assert set(EXPECTED) == set(matrix.PROFILES) == set(KNOWN)


def test_what_is_as_expected_makes_no_difference() -> None:
    assert matrix.compare({"gh200": rows("gh200")}, EXPECTED) == []


def test_a_row_that_changed_or_went_missing_is_named() -> None:
    (changed,) = matrix.compare({"gh200": rows("gh200", region_4="Device")}, EXPECTED)
    assert str(changed) == "gh200, region 4, without the flag: expected forced WB, found Device"
    fewer = [row for row in rows("gh200") if row["memory"] != "region 4"]
    (missing,) = matrix.compare({"gh200": fewer}, EXPECTED)
    assert missing.found == "no row"


def test_tables_have_every_cell() -> None:
    found = {name: rows(name) for name in EXPECTED}
    kinds = {memory for memories in EXPECTED.values() for memory in memories}
    assert matrix.markdown(found).count("\n") == len(kinds) + 2  # and the head, and its line
    page = matrix.html(found)
    assert page.count("<td") == len(kinds) * len(EXPECTED)
    assert 'class="hazard"' in page
    assert "src=" not in page  # self-contained


DUMPED = re.compile(r"dump has '.* (\S+)'$")


def dumped(row: dict[str, object]) -> str | None:
    """Return the memory type in the kernel's own dump of the page table, if it has one."""
    evidence = row["evidence"]
    assert isinstance(evidence, list)
    found = (DUMPED.search(line) for line in evidence)
    return next((match[1] for match in found if match), None)


@pytest.mark.lab
@pytest.mark.kernels
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("profile", matrix.PROFILES)
def test_the_kernel_answers_as_expected(lab_host: Callable[[str], Host], profile: str) -> None:
    """The type that the guest proved is also the one in the kernel's page-table dump."""
    rows = matrix.survey(lab_host(profile))
    differences = matrix.compare({profile: rows}, EXPECTED)
    assert not differences, "\n".join(map(str, differences))

    kernel, _ = matrix.PROFILES[profile]
    types = {
        "forced WB": "MEM/NORMAL-FWB",
        "guest decides": "MEM/NORMAL",
        "NC": "MEM/NORMAL-NC",
        "Device": "DEVICE/nGnRE",
    }
    for row in rows:
        if row["answer"] == "ok":
            # Linux 6.12 has no dump.
            assert dumped(row) == (None if kernel == "legacy" else types[row["verdict"]]), row
