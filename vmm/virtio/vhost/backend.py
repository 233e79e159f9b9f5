"""The interface of whatever serves a device's queues: the kernel, another process, threads in C.

    guest --doorbell (kick)--> back end --interrupt (call)--> guest
                                 |  its own access to guest memory
                                 '--err--> `VhostDevice`: the ring is broken

vhost's ioctls (<linux/vhost.h>) and vhost-user's messages (QEMU's manual, interop/vhost-user) ask
for the same things. `VhostBackend` has these in common, by the names they have there. Methods raise
`HostError` for what fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from vmm.memory import GuestMemory
    from vmm.virtio.queue import Areas
    from vmm.virtio.queue_observer import QueueObserver

PACKED_BASE: Final = 0x8000_8000
"""`Ring.base` of a fresh packed ring: available and used slot 0, both wrap counters 1 (2.8.1)."""


class Ring(NamedTuple):
    """A ring that was checked: its size is lawful, and each area as a whole is guest memory.

    guest, host  the areas' guest physical addresses, and their addresses in this process
    base         where to begin: for a split ring the next index of the available ring, for a
                 packed ring two slots with their wrap counters (`PACKED_BASE`)
    kick, call, err  eventfds: the driver's notification, the interrupt, and the back end's report
                 that it found the ring broken
    observer     for a back end in this process: counts the ring's chains
    """

    size: int
    guest: Areas
    host: Areas
    packed: bool
    base: int
    kick: int
    call: int
    err: int
    observer: QueueObserver | None = None


class VhostBackend(Protocol):
    """A server of rings. Not thread-safe: `VhostDevice` calls it with its lock held."""

    resets_rings: bool
    """Whether one ring can be stopped and started again while the others go on."""

    def features(self) -> int:
        """Return the feature bits it supports: the device's, and those of rings (section 6)."""

    def start(self, features: int, memory: GuestMemory) -> None:
        """Prepare to serve a driver that accepted *features*, which may be more than it supports.

        *memory* has the rings and buffers. It must stay until `stop` has returned.
        """

    def start_ring(self, index: int, ring: Ring) -> None:
        """Serve ring *index* from now on; after `start`."""

    def stop_ring(self, index: int) -> None:
        """Stop everything that touches ring *index*. Raises nothing but `HostError`.

        When it returns or raises, the ring is not touched any more. Without `resets_rings` no other
        ring is served any more: `stop_ring` has to follow for each, and then `stop`.
        """

    def pause_ring(self, index: int) -> None:
        """Stop everything that touches ring *index*, and keep its place in the ring.

        When it returns or raises, the ring is not touched any more. Raises `HostError`.
        """

    def resume_ring(self, index: int) -> None:
        """Go on with ring *index* where `pause_ring` left it. Raises `HostError`."""

    def ring_error(self, index: int) -> str:
        """Return what is wrong with ring *index*, whose `err` was signalled, if it is known."""

    def stop(self) -> None:
        """Forget the driver, all of whose rings were stopped. `start` may follow."""

    def close(self) -> None:
        """Release everything. Idempotent."""
