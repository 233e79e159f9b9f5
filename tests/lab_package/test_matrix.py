"""`pyvmm lab matrix` compares what it measures with what is expected, and says where it differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vmm.cli.lab import lab
from vmm.lab.host import matrix

ROOT = Path(__file__).parents[2]


def rows(profile: str) -> matrix.Rows:
    """Return the rows of a survey that is as expected."""
    return [
        {
            "memory": memory,
            "flag": flag,
            "answer": "EINVAL" if result == "EINVAL" else "ok",
            "verdict": "" if result == "EINVAL" else result,
            "evidence": [],
        }
        for memory, results in matrix.load_expected()[profile].items()
        for flag, result in enumerate(results)
    ]


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
        found = rows(profile)
        found[-2]["verdict"] = "Device"
        return found

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
    """Each page that has the table has it as `pyvmm lab matrix --all --markdown` writes it."""
    table = matrix.markdown({name: rows(name) for name in matrix.PROFILES})
    head = table.partition("\n")[0]
    pages = [ROOT / "README.md", *(ROOT / "vmm").rglob("README.md")]
    having = [page for page in pages if head in page.read_text()]
    assert having
    for page in having:
        assert table in page.read_text(), page
