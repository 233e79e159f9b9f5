"""scripts/mutate: its mutants apply to the code as it is, and the hostile suites kill them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/mutate"


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    spec = spec_from_loader("mutate", SourceFileLoader("mutate", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["mutate"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_mutant_applies_once(mutate: ModuleType) -> None:
    stale = [
        f"{each.file}: {each.name}"
        for each in mutate.mutants()
        if each.applied((ROOT / each.file).read_text()) is None
    ]
    assert stale == []


def test_names_are_unique_and_changes_are_changes(mutate: ModuleType) -> None:
    all_of_them = mutate.mutants()
    assert len(all_of_them) >= 100
    names = Counter((each.file, each.name) for each in all_of_them)
    assert [name for name, count in names.items() if count > 1] == []
    changes = Counter((each.file, each.old, each.new) for each in all_of_them)
    assert [change for change, count in changes.items() if count > 1] == []
    assert [each.name for each in all_of_them if each.old == each.new] == []


def test_suites_are_there(mutate: ModuleType) -> None:
    suites = {suite for each in mutate.mutants() for suite in each.suites}
    assert [suite for suite in suites if not (ROOT / suite.split("::")[0]).is_file()] == []


def test_a_mutant_that_does_not_apply_is_said(mutate: ModuleType) -> None:
    mutant = mutate.Mutant("file", (), "name", "old", "new", "why")
    assert mutant.applied("an old text") == "an new text"
    assert mutant.applied("a text") is None
    assert mutant.applied("old and old") is None
    assert not mutate.report(mutant, mutate.Outcome("stale"))
    assert not mutate.report(mutant, mutate.Outcome("survived"))
    assert mutate.report(mutant._replace(survives="reason"), mutate.Outcome("survived"))
    assert not mutate.report(mutant._replace(survives="reason"), mutate.Outcome("killed", "test"))


def test_who_is_interrupted_leaves_no_suite_running(
    mutate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def interrupted(self: subprocess.Popen[bytes], **_: object) -> None:
        pids.append(self.pid)
        raise KeyboardInterrupt

    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    tree = SimpleNamespace(place=tmp_path, pytest=lambda *_: sleep)
    monkeypatch.setattr(mutate.subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mutate.attack(tree, ())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_the_hostile_suites_kill_one_mutant_of_each_kind() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--small"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ mutants: (\d+) of \1 killed", done.stdout, re.MULTILINE), done.stdout
