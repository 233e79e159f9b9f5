"""The entropy device (VIRTIO 1.2, 5.4): the host's own random bytes, by getrandom(2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.virtio.queue import MemoryMap, Queue

QUEUE_SIZE: Final = 64
MOST: Final = 64 << 10
"""Bytes that one request gets at most. A request may get less than it asks for (5.4.6.1), and 4 GiB
at once would keep all other devices waiting."""


class Rng(VirtioDevice):
    """A source of entropy: one queue, no features, no configuration."""

    device_id: int = lib.VIRTIO_ID_RNG
    unmovable = ""

    def __init__(self, name: str, memory: MemoryMap, events: Events) -> None:
        super().__init__(name, memory, events, [QUEUE_SIZE])

    def serve(self, index: int, queue: Queue) -> None:  # noqa: ARG002  (there is only one)
        """Fill the driver's buffers."""
        for chain in queue.batch(queue.size):
            queue.push(chain.id, chain.fill_random(MOST))
