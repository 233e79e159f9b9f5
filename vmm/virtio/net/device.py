"""The network device: `vmm.virtio.net.registers` for what it says, a back end for its packets.

tap   KernelBackend (vhost-net) or ThreadBackend, over a TAP interface's queues
user  passt: over vhost-user, or its stream socket and ThreadBackend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.virtio.net import registers
from vmm.virtio.net.threads import ThreadBackend
from vmm.virtio.vhost.device import VhostDevice
from vmm.virtio.vhost.kernel import KernelBackend, VhostFile, VhostIoctl

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.virtio.net.registers import Address
    from vmm.virtio.net.tap import Tap
    from vmm.virtio.queue import MemoryMap, Queue
    from vmm.virtio.vhost.backend import Ring, VhostBackend

PATH: Final = "/dev/vhost-net"
QUEUE_SIZE: Final = 256
CONTROL_SIZE: Final = 64
COMMANDS: Final = 16
"""Commands of the control queue before others have a turn."""

TUN_FLAGS: Final = {
    registers.F_GUEST_CSUM: lib.TUN_F_CSUM,
    registers.F_GUEST_TSO4: lib.TUN_F_TSO4,
    registers.F_GUEST_TSO6: lib.TUN_F_TSO6,
    registers.F_GUEST_ECN: lib.TUN_F_TSO_ECN,
}


class NetFile(VhostFile):
    """An instance of vhost-net."""

    module = "vhost_net"


class TapSwitch:
    """What the control queue can do to *tap* (`vmm.virtio.net.registers.Switch`)."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def set_pairs(self, pairs: int) -> None:
        """Use the first *pairs* pairs of queues only."""
        self._tap.set_pairs(pairs)

    def set_offloads(self, features: int) -> None:
        """Have TAP send packets unfinished as GUEST_* *features* say."""
        flags = sum(flag for feature, flag in TUN_FLAGS.items() if features & feature)
        self._tap.set_offload(flags)


class KernelNetBackend(KernelBackend):
    """vhost-net: an instance for each of *tap*'s queues. Raises `HostError`."""

    def __init__(self, tap: Tap, option: str) -> None:
        super().__init__(PATH, NetFile, len(tap.queues), option)
        self._tap = tap

    def features(self) -> int:
        """Return what the kernel can do of rings, and what TAP can do of packets."""
        return int(super().features() | registers.GUEST_OFFLOADS | registers.HOST_OFFLOADS)

    def start_ring(self, index: int, ring: Ring) -> None:
        """Set the ring up and connect it to its TAP queue."""
        file, number = self._files[index // 2], index % 2
        file.set_ring(number, ring)
        queue = self._tap.queues[index // 2].fileno()
        file.set_file(VhostIoctl.VHOST_NET_SET_BACKEND, number, queue)

    def stop_ring(self, index: int) -> None:
        """Disconnect the ring from its TAP queue."""
        self._files[index // 2].set_file(VhostIoctl.VHOST_NET_SET_BACKEND, index % 2, -1)


def thread_backend(tap: Tap) -> ThreadBackend:
    """Return threads of ours that move packets between rings and *tap*, which must outlive it."""
    files = [queue.fileno() for queue in tap.queues]
    return ThreadBackend(files, offers=registers.GUEST_OFFLOADS | registers.HOST_OFFLOADS)


class Net(VhostDevice):
    """A network interface for the guest. Owns *backend* and *tap*, if there is one.

    With a TAP there are offloads that the driver can change, and several pairs of queues.
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
        features = registers.F_MAC | registers.F_STATUS | backend.features() & registers.PACKETS
        features |= registers.F_MTU if address.mtu else 0
        sizes = [QUEUE_SIZE] * (2 * address.pairs)
        if tap is not None:
            features |= registers.F_CTRL_VQ | registers.F_CTRL_GUEST_OFFLOADS
            features |= registers.F_MQ if address.pairs > 1 else 0
            sizes.append(CONTROL_SIZE)
        super().__init__(name, memory, events, sizes, features, backend=backend)
        self._address = address
        self._config = address.config()
        self._tap = tap
        self._switch = TapSwitch(tap) if tap is not None else None
        self._active = 1

    def config(self) -> bytes:
        """Return ``struct virtio_net_config`` (5.1.4)."""
        return self._config

    @property
    def _pairs(self) -> int:
        """How many pairs of queues the driver knows of."""
        return self._address.pairs if self.accepted & registers.F_MQ else 1

    def is_ours(self, index: int) -> bool:
        """Keep the control queue, and what is beyond it for a driver without MQ."""
        return index >= 2 * self._pairs

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Begin with a driver: TAP gives it no packets that it cannot take."""
        if self._switch is not None:
            self._switch.set_offloads(registers.without_unmet(features) & registers.GUEST_OFFLOADS)
        super().prepare(features, memory)

    def awaits_host(self, index: int) -> bool:
        """Leave alone what a driver made ready that it cannot know of."""
        return index != 2 * self._pairs

    def serve(self, index: int, queue: Queue) -> None:
        """Do commands."""
        if self._switch is None or index != 2 * self._pairs:
            return
        control = registers.Control(self, self.accepted, self._pairs)
        for chain in queue.batch(COMMANDS):
            queue.push(chain.id, control.do(chain))

    # What the control queue controls (`vmm.virtio.net.registers.Switch`)

    def set_pairs(self, pairs: int) -> None:
        """Use the first *pairs* pairs of queues only."""
        assert self._switch is not None, "else nobody asks"
        self._switch.set_pairs(pairs)
        for index in range(self._active, pairs):
            self.slots[2 * index].doorbell.signal()  # a thread of ours had found its queue detached
        self._active = pairs

    def set_offloads(self, features: int) -> None:
        """Send packets unfinished as *features* say."""
        assert self._switch is not None, "else nobody asks"
        self._switch.set_offloads(features)

    def stopped(self) -> None:
        """Be as before the driver: one pair of queues."""
        super().stopped()
        if self._switch is not None and self._active > 1:
            self._try(lambda: self.set_pairs(1))

    def close(self) -> None:
        """Stop, and close the interface. Idempotent."""
        super().close()
        if self._tap is not None:
            self._tap.close()
