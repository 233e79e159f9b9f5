"""A whole run in a lab host, each of whose system calls fails once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

INSIDE = Path(__file__).parent / "inside" / "faulted_run.py"
PLACE = "/run/tmp/faulted"
RUN = (
    *("run", "--host", "native", "--memory", "64M", "--disk", "disk,format=raw"),
    *("--pmem", "pmem", "--console", "file=console", "--events", "events"),
    *("--control", "control", "guest"),
)
"""What runs, in `PLACE`."""


class Found(NamedTuple):
    """What came of it: how many calls the run makes, and of what kinds, and each fault."""

    calls: int
    kinds: list[str]
    faults: list[dict[str, Any]]

    @property
    def wrong(self) -> list[str]:
        """The faults after which the command ended without order, or left something."""
        return [f"{each['fault']}: {each['wrong']}" for each in self.faults if each["wrong"]]


def fail_each_call(host: Host, guest: Path, most: int, timeout: float) -> Found:
    """Run *guest*, let about *most* calls of a kind fail, or all if it is 0; in *timeout* s."""
    prepare = f"rm -rf {PLACE}; mkdir {PLACE}; cd {PLACE}; cp {inside(guest)} guest; "
    prepare += "for each in disk pmem; do truncate -s 2M $each; done; touch events console"
    command = f"{prepare}; exec python3 {inside(INSIDE)} {most} {' '.join(RUN)}"
    done = host.run(["sh", "-ec", command], timeout=timeout)
    whole, *lines = [json.loads(line) for line in done.stdout.splitlines()] or [None]
    assert whole, done.stderr.decode()
    host.run(["rm", "-rf", PLACE])
    return Found(whole["calls"], whole["kinds"], lines)
