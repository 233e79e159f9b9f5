"""Run in a lab host: run machines with a device, one after another; print leaks as JSON.

Usage: vfio_rounds.py IMAGE BDF ROUNDS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vmm.config import MachineConfig
from vmm.config.vfio import VfioConfig
from vmm.events import Events
from vmm.loop import Loop
from vmm.machine.machine import Machine


def counts() -> list[int]:
    """Return how many files, mappings and processes there are."""
    return [
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        len(Path("/proc/self/maps").read_text().splitlines()),
        sum(map(is_program, os.listdir("/proc"))),  # noqa: PTH208
    ]


def is_program(name: str) -> bool:
    """Tell whether /proc/*name* is a process, and not a kernel thread."""
    try:
        return name.isdecimal() and bool(Path(f"/proc/{name}/cmdline").read_bytes())
    except OSError:  # it has ended
        return False


def main(image: str, bdf: str, rounds: int) -> None:
    """Run the machines and print the counts before and after."""
    config = MachineConfig(image=Path(image), memory=64 << 20, vfio=(VfioConfig(bdf, bind=True),))
    endings, drivers, seen = [], [], []
    for _ in range(rounds):
        with Loop() as loop, Machine(config, loop, Events()) as machine:
            endings.append(machine.run().value)
        drivers.append(Path(f"/sys/bus/pci/devices/{bdf}/driver").readlink().name)
        seen.append(counts())
    # What grows with the number of rounds leaks.
    half = rounds // 2
    early = [min(column) for column in zip(*seen[:half], strict=True)]
    late = [min(column) for column in zip(*seen[half:], strict=True)]
    leaked = [max(0, after - before) for before, after in zip(early, late, strict=True)]
    found = {"endings": endings, "drivers": drivers, "leaked": leaked, "seen": seen}
    json.dump(found, sys.stdout)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
