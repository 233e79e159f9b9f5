"""scripts/fuzz: what it finds is a small file, which fails again."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.fuzz.target import Target

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/fuzz"


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def fuzz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script as a module, with a cache of its own."""
    loader = importlib.machinery.SourceFileLoader("fuzz_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("fuzz_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path)
    return module


def test_a_target_is_attacked_for_as_long_as_was_said(tmp_path: Path) -> None:
    done = run(tmp_path, "codec", "--engine", "hypothesis", "--minutes", "0.02", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 7" in done.stdout
    assert " 0 findings" in done.stdout
    assert list(tmp_path.glob("pyvmm/fuzz/codec/corpus/*"))


def test_one_input_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"{}")
    done = run(tmp_path, "codec", "--input", str(tmp_path / "input"))
    assert (done.returncode, done.stdout) == (0, "it does no harm\n")


def test_there_is_one_line_for_a_target_that_is_none(tmp_path: Path) -> None:
    done = run(tmp_path, "codecs")
    assert done.returncode == 2
    assert "no target codecs; --list prints them" in done.stderr


def test_what_hypothesis_finds_is_made_small_and_fails_again(
    fuzz: ModuleType, tmp_path: Path
) -> None:
    def bad(data: bytes) -> None:
        if b"\xff" in data:
            raise ValueError(data)

    target = Target("bad", "", bad, lambda: [bytes(40)])
    (tmp_path / "findings").mkdir()
    with pytest.raises(ValueError, match="xff"):
        fuzz.by_hypothesis(target, 60, 1, tmp_path)
    (finding,) = (tmp_path / "findings").iterdir()
    assert len(finding.read_bytes()) <= 41
    with pytest.raises(ValueError, match="xff"):
        target.run(finding.read_bytes())


def test_a_corpus_has_a_largest_size(fuzz: ModuleType, tmp_path: Path) -> None:
    for number, size in enumerate((1, fuzz.CORPUS_MOST, 5)):
        (tmp_path / str(number)).write_bytes(bytes(size))
    fuzz.trim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "2"}
