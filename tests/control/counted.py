"""Counters of a machine, as a test has them."""

from __future__ import annotations

from vmm.kvm.exit_observer import ExitCounts
from vmm.observe.counters import (
    AddressCounters,
    Counters,
    InterruptCounters,
    QueueCounters,
    VcpuCounters,
)
from vmm.virtio.queue_observer import QueueCounts


def counters(scale: int = 1) -> Counters:
    """Return counters that are *scale* times what they once were."""
    observed = ExitCounts({"MMIO": 100 * scale, "kick": 2 * scale}, [], 0)
    return Counters(
        seconds=1.5 * scale,
        vcpus=[
            VcpuCounters(0, 120 * scale, 50 * scale, observed, {"exits": 1000 * scale}),
            VcpuCounters(1, 0, 0, ExitCounts({}, [], 0), {}),
        ],
        addresses=[AddressCounters('UART "0"', 30 * scale, 60 * scale, 50 * scale)],
        queues=[
            QueueCounters("blk0", 0, QueueCounts(10 * scale, 0, 40960 * scale, 0.1)),
            QueueCounters("rng", 0, QueueCounts(0, 0, 0, 0.0)),
        ],
        interrupts=[InterruptCounters("blk0", 10 * scale)],
    )
