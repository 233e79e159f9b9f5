"""Run in the emulated host: time commands in turns.

Reads {"commands": {NAME: ARGUMENTS}, "rounds": N} from stdin as JSON, and writes to stdout
{NAME: [seconds, ...]}. A first round only warms up. Each round begins with another command.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time


def main() -> None:
    """Do what stdin asks for."""
    task = json.load(sys.stdin)
    names = list(task["commands"])
    laps: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(task["rounds"] + 1):
        for name in names if turn % 2 else reversed(names):
            began = time.monotonic()
            done = subprocess.run(
                task["commands"][name], stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            seconds = time.monotonic() - began
            if done.returncode:
                sys.exit(f"{name} ended with {done.returncode}: {done.stderr[-300:]!r}")
            if turn:
                laps[name].append(seconds)
    json.dump(laps, sys.stdout)


if __name__ == "__main__":
    main()
