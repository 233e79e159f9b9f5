"""What serves a device's queues instead of us, whoever it is: the kernel or another process.

    guest --doorbell (kick)--> back end --interrupt (call)--> guest
                                 |  its own access to guest memory
                                 '--err--> us: the ring is broken

vhost's ioctls (<linux/vhost.h>) and vhost-user's messages (its specification is in QEMU's manual)
ask for the same things; `VhostBackend` is what they have in common, in their words. Back ends
raise `HostError` for what fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from vmm.memory import GuestMemory
    from vmm.virtio.queue import Areas

PACKED_BASE: Final = 0x8000_8000
"""Where a fresh packed ring begins: available and used slot 0, both wrap counters 1 (2.8.1)."""


class Ring(NamedTuple):
    """A ring, checked: its areas are guest memory, each as a whole, and so is its size.

    guest, host  its areas' guest physical addresses, and where they are in our address space
    base         where it begins: split, the next index of the available ring; packed, two slots
                 with their wrap counters (`PACKED_BASE`)
    kick, call, err  eventfds: the driver's notification, the interrupt, and the back end's word
                 that it found the ring broken
    """

    size: int
    guest: Areas
    host: Areas
    packed: bool
    base: int
    kick: int
    call: int
    err: int


class VhostBackend(Protocol):
    """Serve rings. Not thread-safe: `VhostDevice` calls it with its lock held."""

    resets_rings: bool
    """Whether one ring can be stopped and started again while the others go on."""

    def features(self) -> int:
        """Return the feature bits that it can do: the device's, and those of rings (section 6)."""

    def start(self, features: int, memory: GuestMemory) -> None:
        """Prepare to serve a driver that accepted *features*; those it has no part in, too.

        *memory* is where rings and buffers are; it must not go before `stop` has returned.
        """

    def start_ring(self, index: int, ring: Ring) -> None:
        """Serve ring number *index* from now on; after `start`."""

    def stop_ring(self, index: int) -> None:
        """End all that touches ring *index*. Raises nothing but `HostError`.

        When it returns or raises, the ring is not touched any more. Without `resets_rings` the
        others are not served any more, either: `stop_ring` is to follow for each, and `stop`.
        """

    def ring_error(self, index: int) -> str:
        """Say what is wrong with ring *index*, whose `err` was signalled; as far as it is known."""

    def stop(self) -> None:
        """Forget the driver: its rings have been stopped. `start` may follow."""

    def close(self) -> None:
        """Let go of everything. Idempotent."""
