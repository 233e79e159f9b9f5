"""``--watchdog``: a time and where symbols are."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config.watchdog import WatchdogConfig, parse_watchdog
from vmm.errors import UserError


def test_a_time_and_a_file() -> None:
    assert parse_watchdog("2.5") == WatchdogConfig(2500)
    assert parse_watchdog("10,symbols=System.map") == WatchdogConfig(10_000, Path("System.map"))


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1s", "1,symbols=", "1,symbol=a", "9999999"])
def test_what_cannot_be_used_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--watchdog"):
        parse_watchdog(text)
