"""``--watchdog``: when a vCPU counts as stuck, and whose functions it may be in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from vmm.config.option import Key, parse_keys, split
from vmm.errors import UserError

SYNTAX: Final = "SECONDS[,symbols=FILE]"
USAGE: Final = f"write --watchdog {SYNTAX}"


class WatchdogConfig(NamedTuple):
    """The watchdog.

    milliseconds  a vCPU that spins with interrupts off for so long is stuck
    symbols       vmlinux, System.map or a copy of /proc/kallsyms; None: addresses stay numbers
    """

    milliseconds: int
    symbols: Path | None = None

    @property
    def option(self) -> str:
        """The option, as errors name it."""
        return f"--watchdog {self.milliseconds / 1000:g}"


def parse_watchdog(text: str) -> WatchdogConfig:
    """Parse `SYNTAX`; SECONDS may have a fraction. Raises `UserError`."""
    seconds, *parts = split(text)
    found = parse_keys(f"--watchdog {text}", parts, {"symbols": Key(_path)}, USAGE)
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", seconds, re.ASCII) or not float(seconds):
        raise UserError(f"--watchdog: {seconds!r} is no time in seconds", USAGE)
    return WatchdogConfig(round(float(seconds) * 1000), found.get("symbols"))


def _path(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)
