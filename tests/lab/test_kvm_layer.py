"""The KVM layer's own tests, on an arm64 host's KVM."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]


def test_the_kvm_layer_passes_its_tests_on_arm64(lab_host: Callable[[str], Host]) -> None:
    """15 s, most of it pytest's start; with the pytest that lab hosts have."""
    # Not beside our vmm: the host's own is the one to test, built for arm64.
    script = f"""\
        ln -sfn {inside(ROOT / "tests")} /run/tests
        exec pytest -q -p no:cacheprovider -o pythonpath=/run --confcutdir tests/kvm tests/kvm"""
    done = lab_host("fwb").run(
        # Without tests/conftest.py, which needs packages that lab hosts lack.
        ["sh", "-c", script],
        cwd=ROOT,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=600,
    )
    report = done.stdout.decode() + done.stderr.decode()
    assert done.status == 0, report
    (passed,) = re.findall(r"(\d+) passed in", report)
    assert int(passed) >= 25, report
    assert "skipped" not in report
