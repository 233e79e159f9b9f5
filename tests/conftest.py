"""For all tests: no skips that hide, no deadlines that a busy machine misses, signals as usual.

With PYVMM_NO_SKIP=1 a skipped test is a failed one.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

try:
    from hypothesis import HealthCheck, Phase, settings
except ImportError:
    pass  # in a lab host, where some tests run, too
else:
    # On a busy machine an example may take long, and that says nothing about it.
    # This is on top of Hypothesis's own profile, which is another one where CI is set.
    settings.register_profile(
        "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("unhurried")
    # For scripts/mutate: that a mutant dies is enough, by which example is no matter.
    settings.register_profile(
        "as-found", settings.get_profile("unhurried"), phases=[Phase.explicit, Phase.generate]
    )

_OFTEN_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def pytest_configure() -> None:
    """Start children with default signal dispositions, under nohup and in the background, too.

    An ignored signal stays ignored across execve(2); a handled one becomes the default.
    """
    for number in _OFTEN_IGNORED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # still nothing, for pytest itself


NO_SKIP = os.environ.get("PYVMM_NO_SKIP", "0") not in {"", "0"}


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip (not an expected failure) into a failure that says what was missing."""
    if not NO_SKIP or not report.skipped or hasattr(report, "wasxfail"):
        return
    where = report.longrepr
    reason = where[2] if isinstance(where, tuple) else str(where)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} would be skipped, but PYVMM_NO_SKIP is set. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at each test's outcome."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at each module's: one may be skipped as a whole."""
    report = yield
    _forbid_skip(report)
    return report
