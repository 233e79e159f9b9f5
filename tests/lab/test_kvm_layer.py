"""The KVM layer's own tests, once more, where KVM is an arm64 host's."""

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
    # `tests` is found beside no vmm: the one to test is the host's own, made for arm64.
    script = f"""\
        ln -sfn {inside(ROOT / "tests")} /run/tests
        exec pytest -q -p no:cacheprovider -o pythonpath=/run --confcutdir tests/kvm tests/kvm"""
    done = lab_host("fwb").run(
        # Without tests/conftest.py, which wants more than lab hosts have.
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
