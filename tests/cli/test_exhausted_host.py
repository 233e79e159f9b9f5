"""A host that runs out of something: one line, wherever a system call fails."""

from __future__ import annotations

import errno

import pytest

import vmm.cli
from vmm.errors import EXHAUSTED


def fail(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def invoke() -> int:
        raise OSError(number, "it fails")

    monkeypatch.setattr(vmm.cli, "_invoke", invoke)


@pytest.mark.parametrize("number", sorted(EXHAUSTED))
def test_a_host_that_has_run_out_is_one_line_and_a_status(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, number)
    with pytest.raises(SystemExit) as end:
        vmm.cli.main()
    assert end.value.code == 3
    line = capsys.readouterr().err
    assert line.startswith("pyvmm: the host has run out of something: ")
    assert "it fails" in line
    assert line.count("\n") == 1


def test_other_failures_are_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, errno.EBADF)
    with pytest.raises(OSError, match="it fails"):
        vmm.cli.main()
