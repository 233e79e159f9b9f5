"""Each kind of system call of a whole run fails: an error in order, or a machine that lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.failing_calls import fail_each_call
from tests.lab.guest.flat_guest import POWER_OFF, assemble
from vmm.errors import EXIT_HOST
from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]
MOST = 1
"""Calls of a kind that fail: ``scripts/faults`` lets all of them."""


def test_a_call_of_each_kind_fails_and_the_run_ends_in_order(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    guest = assemble(tmp_path, POWER_OFF)
    found = fail_each_call(lab_host("fwb"), guest, MOST, timeout=1700)
    assert {"ioctl", "mmap", "openat", "write"} <= {*found.kinds}
    assert not found.wrong, "\n\n".join(found.wrong)
    ends = Counter(each["status"] for each in found.faults if each["given"])
    assert ends[0], "no machine lives"
    assert ends[EXIT_HOST], "no fault is told"
