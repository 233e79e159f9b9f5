"""Run in a lab host: start and stop machines in one process, and report what that leaves behind.

    cycles.py GUEST CPUS COUNT

GUEST powers itself off. Prints JSON: what there was after a few machines, and after COUNT more.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

from vmm.config import MachineConfig
from vmm.events import Events
from vmm.loop import Loop
from vmm.machine.machine import Ending, Machine
from vmm.terminal.console import StdioConsole

WARM = 60
"""Machines to run first, so that what is kept on purpose, such as arenas, exists."""


def cycle(config: MachineConfig, output: int) -> None:
    with (
        Loop() as loop,
        Machine(config, loop, Events()) as machine,
        StdioConsole(loop, machine.output, machine.uart, stdin=None, stdout=output),
    ):
        assert machine.run() is Ending.POWERED_OFF


def left() -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return {
        "fds": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "blocks": sys.getallocatedblocks(),
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "rss_kib": int(status.partition("VmRSS:")[2].split()[0]),
        "virtual_kib": int(status.partition("VmSize:")[2].split()[0]),
        "vms": sum(path.is_dir() for path in Path("/sys/kernel/debug/kvm").iterdir()),
    }


def main() -> None:
    guest, cpus, count = sys.argv[1:]
    config = MachineConfig(image=Path(guest), cpus=int(cpus), memory=64 << 20)
    output = os.open(os.devnull, os.O_WRONLY)
    for _ in range(WARM):
        cycle(config, output)
    before, began = left(), time.monotonic()
    for _ in range(int(count)):
        cycle(config, output)
    seconds = time.monotonic() - began
    print(json.dumps({"before": before, "after": left(), "seconds": seconds}))  # noqa: T201


if __name__ == "__main__":
    main()
