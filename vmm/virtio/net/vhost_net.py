"""vhost-net: the kernel moves packets between rings and a TAP interface (drivers/vhost/net.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.virtio.net import registers
from vmm.virtio.vhost.kernel import KernelBackend, VhostFile, VhostIoctl

if TYPE_CHECKING:
    from vmm.virtio.net.tap import Tap
    from vmm.virtio.vhost.backend import Ring

PATH: Final = "/dev/vhost-net"


class NetFile(VhostFile):
    """One instance of vhost-net: two rings."""

    module = "vhost_net"


class KernelNetBackend(KernelBackend):
    """One instance of vhost-net for each of *tap*'s queues. Raises `HostError`."""

    def __init__(self, tap: Tap, option: str) -> None:
        super().__init__(PATH, NetFile, len(tap.queues), option)
        self._tap = tap

    def features(self) -> int:
        """Return the ring features of vhost-net, and the packet features of TAP."""
        return int(super().features() | registers.GUEST_OFFLOADS | registers.HOST_OFFLOADS)

    def start_ring(self, index: int, ring: Ring) -> None:
        """Set the ring up and connect it to its TAP queue."""
        self._files[index // 2].set_ring(index % 2, ring)
        self.resume_ring(index)

    def pause_ring(self, index: int) -> None:
        """Disconnect the ring from its TAP queue: the kernel keeps the ring's place."""
        self.stop_ring(index)

    def resume_ring(self, index: int) -> None:
        """Connect the ring to its TAP queue again."""
        queue = self._tap.queues[index // 2].fileno()
        self._files[index // 2].set_file(VhostIoctl.VHOST_NET_SET_BACKEND, index % 2, queue)

    def stop_ring(self, index: int) -> None:
        """Disconnect the ring from its TAP queue."""
        self._files[index // 2].set_file(VhostIoctl.VHOST_NET_SET_BACKEND, index % 2, -1)
