"""The network device (VIRTIO 1.2, 5.1): registers and control queue here, packets in a back end.

tap   KernelNetBackend (vhost-net) or ThreadBackend, over the queues of a TAP interface
user  passt: over its stream socket and ThreadBackend; over vhost-user see `vhost_user`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.virtio.net import registers
from vmm.virtio.vhost.device import VhostDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.virtio.net.registers import Address
    from vmm.virtio.net.tap import Tap
    from vmm.virtio.queue import MemoryMap, Queue
    from vmm.virtio.vhost.backend import VhostBackend

CONTROL_SIZE: Final = 64
COMMANDS: Final = 1
"""Commands of the control queue in one call of `Net.serve`, so that other devices get a turn."""

TUN_FLAGS: Final = {
    registers.F_GUEST_CSUM: lib.TUN_F_CSUM,
    registers.F_GUEST_TSO4: lib.TUN_F_TSO4,
    registers.F_GUEST_TSO6: lib.TUN_F_TSO6,
    registers.F_GUEST_ECN: lib.TUN_F_TSO_ECN,
}


def tun_flags(features: int) -> int:
    """Return GUEST_* *features* as the TUN_F_* flags of `vmm.virtio.net.tap.Tap.set_offload`."""
    return int(sum(flag for feature, flag in TUN_FLAGS.items() if features & feature))


class Net(VhostDevice):
    """A network interface for the guest. Owns *backend*, and *tap* if there is one.

    With a TAP the driver can change offloads, and use several pairs of queues.
    """

    device_id: int = lib.VIRTIO_ID_NET

    def __init__(  # noqa: PLR0913
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        address: Address,
        *,
        backend: VhostBackend,
        tap: Tap | None = None,
    ) -> None:
        features = address.features(backend.features(), control=tap is not None)
        sizes = [registers.QUEUE_SIZE] * (2 * address.pairs)
        sizes += [] if tap is None else [CONTROL_SIZE]
        super().__init__(name, memory, events, sizes, features, backend=backend)
        self._address = address
        self._config = address.config()
        self._tap = tap
        self._active = 1

    def config(self) -> bytes:
        """Return ``struct virtio_net_config`` (5.1.4)."""
        return self._config

    @property
    def _pairs(self) -> int:
        """How many pairs of queues the driver knows of (5.1.2)."""
        return self._address.pairs if self.accepted & registers.F_MQ else 1

    def is_ours(self, index: int) -> bool:
        """Keep the control queue, and the queues beyond it that a driver without MQ ignores."""
        return index >= 2 * self._pairs

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Start with a driver: TAP passes it no packets that it did not accept."""
        if self._tap is not None:
            self.set_offloads(registers.without_unmet(features) & registers.GUEST_OFFLOADS)
        super().prepare(features, memory)

    def awaits_host(self, index: int) -> bool:
        """Whether queue *index* is one that the driver cannot know of, and must not have filled."""
        return index != 2 * self._pairs

    def serve(self, index: int, queue: Queue) -> None:
        """Execute commands of the control queue."""
        if self._tap is None or index != 2 * self._pairs:
            return
        control = registers.Control(self, self.accepted, self._pairs)
        for chain in queue.batch(COMMANDS):
            queue.push(chain.id, control.do(chain))

    # What the control queue controls (`vmm.virtio.net.registers.Switch`)

    def set_pairs(self, pairs: int) -> None:
        """Use the first *pairs* pairs of queues only."""
        assert self._tap is not None, "there is no control queue without"
        self._tap.set_pairs(pairs)
        for index in range(self._active, pairs):
            self.slots[2 * index].doorbell.signal()  # our thread had found its queue detached
        self._active = pairs

    def set_offloads(self, features: int) -> None:
        """Pass the driver packets with the offloads in *features* (GUEST_*) left undone."""
        assert self._tap is not None, "there is no control queue without"
        self._tap.set_offload(tun_flags(features))

    def stopped(self) -> None:
        """Go back to one pair of queues, as before the driver."""
        super().stopped()
        if self._tap is not None and self._active > 1:
            self._try(lambda: self.set_pairs(1))

    def close(self) -> None:
        """Stop, and close the interface. Idempotent."""
        super().close()
        if self._tap is not None:
            self._tap.close()
