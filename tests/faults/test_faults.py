"""Each system call of parts of a machine fails once: a clear error or a living part; nothing left.

The calls are those that a run without a fault makes, so that a change of code changes what fails.
Of a call that is made over and over, as KVM_CHECK_EXTENSION is, some are tried.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.faults import supervisor
from tests.faults.scenarios import FINE, REFUSED, SCENARIOS, inject
from tests.faults.selection import faults
from tests.faults.supervisor import Fault

pytestmark = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm that we may use"
)
MOST = 6
"""Calls of one kind that fail in a scenario."""


@pytest.mark.kvm
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_system_call_that_fails_is_an_error_or_does_not_matter(name: str) -> None:
    whole, said = inject(name)
    assert whole.status == FINE, said
    assert whole.calls
    wrong, given, seen = [], 0, Counter[int]()
    for fault in (wanted := faults(whole.calls, MOST)):
        try:
            outcome, said = inject(name, fault)
        except TimeoutError as error:
            wrong.append(f"{fault}: {error}")
            continue
        given += outcome.given
        seen[outcome.status] += 1
        if outcome.status not in (FINE, REFUSED):
            wrong.append(f"{fault}: status {outcome.status}: {said}")
    assert not wrong, "\n\n".join(wrong)
    assert given >= len(wanted) * 0.7  # threads make their calls when they can
    assert seen[REFUSED]


def test_what_is_left_and_what_is_no_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's own test: code that leaks, that hangs, and that raises anything."""
    held = []

    def leak(_place: object) -> None:
        held.append(os.memfd_create("leak"))

    def careless(_place: object) -> None:
        os.close(os.memfd_create("careless"))

    def hang(_place: object) -> None:
        os.read(os.pipe()[0], 1)

    monkeypatch.setitem(SCENARIOS, "leak", leak)
    monkeypatch.setitem(SCENARIOS, "careless", careless)
    outcome, said = inject("leak")
    assert outcome.calls == ["memfd_create"]
    assert outcome.status == 10
    assert "memfd:leak" in said
    outcome, said = inject("careless", Fault(0, "memfd_create", 11))  # EAGAIN
    assert outcome.status == 11
    assert outcome.given
    assert "BlockingIOError" in said
    monkeypatch.setattr(supervisor, "PATIENCE", 1)
    monkeypatch.setitem(SCENARIOS, "hang", hang)
    monkeypatch.setattr("tests.faults.scenarios.warm", lambda _name: None)
    with pytest.raises(TimeoutError, match="it hangs after"):
        inject("hang")
    os.close(*held)  # `warm` made it here, too
