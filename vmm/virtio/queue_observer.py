"""Count the chains of a queue that pyvmm serves, in C: see cdefs/observe.h.

Queues of vhost and of other processes are not seen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vmm._native import ffi, lib

if TYPE_CHECKING:
    from vmm.virtio.queue import Queue


class QueueCounts(NamedTuple):
    """What a queue has moved since the device was made.

    chains    used
    readable  bytes in the device-readable buffers of chains that were popped
    written   bytes that the device wrote
    service   seconds from pop to use, summed over the chains, since they are timed. A buffer that
              waits for a packet counts, too
    """

    chains: int
    readable: int
    written: int
    service: float


class QueueObserver:
    """The counters of one of a device's queues; they outlive the queue and its resets."""

    def __init__(self) -> None:
        self.c: Any = ffi.new("struct pyvmm_queue_observer *")
        self._timed = False
        self._ids = 0
        self._flights: Any = None

    def attach(self, queue: Queue) -> None:
        """Count the chains of *queue*, which nobody uses yet. A queue before it is gone."""
        self._ids = queue.ids
        if self._timed:
            self._make_room()
        queue.c.observer = self.c

    def time(self) -> None:
        """Measure how long chains are with the device, from the next one popped on."""
        if not self._timed:
            self._timed = True
            self._make_room()

    def _make_room(self) -> None:
        """Have room to remember when each chain came."""
        if self._ids > self.c.flight_count:
            before = self._flights  # stays until the C has the new one
            self._flights = ffi.new("struct pyvmm_flight[]", self._ids)
            lib.pyvmm_observe_time(self.c, self._flights, self._ids)
            del before

    def counts(self) -> QueueCounts:
        """Return the counters. Thread-safe."""
        c = self.c
        return QueueCounts(c.chains, c.readable, c.written, c.service / 1e9)
