"""Run in a lab host: pause and resume a guest that counts, and print what its counts did.

    paused.py GUEST CPUS ROUNDS

GUEST is `flat_guest.COUNT`. Prints JSON, for each round: whether all counts stood still while the
machine was paused, and the ticks of the virtual counter that the guest saw pass in two times as
long: one in which it was paused, and one in which it ran.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path

from vmm.config import MachineConfig
from vmm.events import Events
from vmm.loop import Loop
from vmm.machine.machine import Ending, Machine

COUNTERS = 0x4100_0000
PAUSE = 3.0
"""Seconds: much longer than it takes a vCPU to leave the guest and enter it again."""
PATIENCE = 120.0


class Run:
    """One machine, and rounds of a pause in callbacks of its loop."""

    def __init__(self, loop: Loop, machine: Machine, cpus: int, rounds: int) -> None:
        self.loop, self.machine, self.cpus, self.rounds = loop, machine, cpus, rounds
        self.found: list[dict[str, int]] = []
        self.before: list[tuple[int, int]] = []
        self.deadline = time.monotonic() + PATIENCE
        loop.call_later(0.1, self.begin)

    def counts(self) -> list[tuple[int, int]]:
        read = self.machine.space.memory.read
        return [struct.unpack("<QQ", read(COUNTERS + 64 * cpu, 16)) for cpu in range(self.cpus)]

    def went_on(self, since: list[tuple[int, int]]) -> bool:
        return all(now > then for (now, _), (then, _) in zip(self.counts(), since, strict=True))

    def begin(self) -> None:
        """Pause once every vCPU counts."""
        assert time.monotonic() < self.deadline, self.counts()
        if not all(count for count, _ in self.counts()):
            self.loop.call_later(0.1, self.begin)
            return
        self.machine.pause()
        self.before = self.counts()
        self.loop.call_later(PAUSE, self.end)

    def end(self) -> None:
        """Look, and resume."""
        still = self.counts() == self.before
        self.machine.resume()
        self.found.append({"still": still})
        self.after()

    def after(self) -> None:
        """Wait until every vCPU counts again."""
        assert time.monotonic() < self.deadline, (self.counts(), self.before)
        if not self.went_on(self.before):
            self.loop.call_later(0.01, self.after)
            return
        now = self.counts()[0][1]
        self.found[-1]["paused"] = now - self.before[0][1]
        self.loop.call_later(PAUSE, lambda: self.compare(now))

    def compare(self, since: int) -> None:
        """Note how far the counter went while the guest ran; begin another round."""
        self.found[-1]["running"] = self.counts()[0][1] - since
        if len(self.found) < self.rounds:
            self.begin()
        else:
            self.machine.end(Ending.QUIT)


def main() -> None:
    """Run, and print what was found."""
    guest, cpus, rounds = sys.argv[1:]
    config = MachineConfig(image=Path(guest), cpus=int(cpus), memory=64 << 20)
    with Loop() as loop, Machine(config, loop, Events()) as machine:
        run = Run(loop, machine, int(cpus), int(rounds))
        assert machine.run() is Ending.QUIT
    print(json.dumps(run.found))  # noqa: T201


if __name__ == "__main__":
    main()
