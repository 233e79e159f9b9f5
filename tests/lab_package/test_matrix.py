"""`pyvmm lab matrix` compares what it measures with what is expected, and says where it differs."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.lab_package.matrix_rows import rows
from vmm.cli.lab import lab
from vmm.coherence.verdict import MemoryType
from vmm.lab.host import matrix

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(lab, ["matrix", *arguments])


@pytest.fixture(autouse=True)
def _as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "measure", rows)


def test_a_table_that_is_as_expected_succeeds() -> None:
    done = run("--all")
    assert done.exit_code == 0, done.output
    assert all(", ".join(names) in done.output for names in matrix.PROFILES.values())


def test_a_legacy_kernel_is_measured_only_on_request() -> None:
    assert "legacy" not in run().output
    assert "legacy" in run("legacy-gh200").output


def test_a_cell_that_differs_is_named_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(profile: str) -> matrix.Rows:
        return rows(profile, region_4="Device")

    monkeypatch.setattr(matrix, "measure", measured)
    done = run("gh200")
    assert done.exit_code == 1
    assert "gh200, region 4, without the flag: expected forced WB, found Device\n" in done.output


def test_another_expectation_can_be_given(tmp_path: Path) -> None:
    other = matrix.load_expected()
    other["gh200"]["region 4"] = ["EINVAL", "forced WB"]
    file = tmp_path / "expected.json"
    file.write_text(json.dumps(other))
    done = run("gh200", "--expect", str(file))
    assert done.exit_code == 1
    assert done.output.count("gh200, region 4") == 2


def test_pages_show_the_table_that_is_expected() -> None:
    """A page has it as `pyvmm lab matrix --all --markdown` writes it; README.md has some lines."""
    table = matrix.markdown({name: rows(name) for name in matrix.PROFILES}).splitlines()
    assert "\n".join(table) in (ROOT / "vmm/coherence/README.md").read_text()
    page = (ROOT / "README.md").read_text().splitlines()
    start = page.index(table[0])
    shown = list(takewhile(lambda line: line.startswith("|"), page[start:]))
    assert len(shown) > 5
    assert set(shown) <= set(table)


def test_a_cell_tells_what_the_flag_changes() -> None:
    assert matrix.cell("forced WB", "EINVAL") == "forced WB"
    assert matrix.cell("forced WB", "forced WB") == "forced WB, flag too"
    assert matrix.cell("EINVAL", "forced WB") == "EINVAL; flag: forced WB"
    assert matrix.cell("EINVAL", "EINVAL") == "EINVAL"
    assert matrix.cell("mmap ENODEV", "mmap ENODEV") == "mmap ENODEV"


def test_the_types_are_those_of_a_verdict() -> None:
    assert {kind.value for kind in MemoryType} == matrix.TYPES


def test_only_cacheable_memory_is_a_hazard() -> None:
    """Device memory that the host maps so is in order; the same type for region 4 is not."""
    lines = matrix.markdown({"gh200": rows("gh200", region_4="Device")}).splitlines()
    assert "| region 4 | **Device** |" in lines
    assert "| region 0 | NC |" in lines
    page = matrix.html({"gh200": rows("gh200", region_4="Device")})
    assert page.count('class="hazard"') == 1


# --- KTAP --------------------------------------------------------------------------------------

RESULT = re.compile(r"(ok|not ok) (\d+) ([^#]+)")


def parsed(lines: list[str]) -> dict[str, bool]:
    """Parse one level of KTAP strictly; return each test's name and result, subtests' as well."""
    assert lines.pop(0) == "KTAP version 1"
    found: dict[str, bool] = {}
    nested: list[str] = []
    planned = count = 0
    for line in lines:
        if line.startswith("  "):
            nested.append(line[2:])
        elif line.startswith("1.."):
            assert not planned
            planned = int(line[3:])
        elif not line.startswith("#"):
            assert planned, "the plan comes first"
            match = RESULT.fullmatch(line)
            assert match, line
            count += 1
            assert int(match[2]) == count
            good = match[1] == "ok"
            if nested:
                below = parsed(nested)
                assert good is all(below.values())
                found |= {f"{match[3]}: {name}": result for name, result in below.items()}
                nested = []
            found[match[3]] = good
    assert count == planned
    assert not nested
    return found


def test_tap_is_ktap_and_names_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("gh200", "rfc", "--tap")
    assert done.exit_code == 0
    assert all(parsed(done.output.splitlines()).values())

    def measured(profile: str) -> matrix.Rows:
        found = rows(profile, region_4="Device") if profile == "gh200" else rows(profile)
        return [row for row in found if profile == "gh200" or row["memory"] != "memfd"]

    monkeypatch.setattr(matrix, "measure", measured)
    done = run("gh200", "rfc", "--tap")
    assert done.exit_code == 1
    report = done.output[: done.output.index("gh200, region 4")].splitlines()
    failed = [name for name, good in parsed(report).items() if not good]
    assert failed == [
        "gh200: region 4 without the flag: Device",
        "gh200",
        "rfc: memfd: no row",
        "rfc",
    ]
    assert "  # expected forced WB, found Device" in report
