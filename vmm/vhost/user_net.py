"""A network device that a vhost-user daemon serves: passt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.vhost.net import QUEUE_SIZE
from vmm.vhost.user_device import VhostUserDevice
from vmm.virtio import net

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.vhost.user import VhostUser
    from vmm.virtio.net import Address
    from vmm.virtio.queue import MemoryMap

SIZES: Final = (QUEUE_SIZE, QUEUE_SIZE)


class VhostUserNet(VhostUserDevice):
    """A network interface with one pair of queues. Owns *backend*."""

    device_id: int = lib.VIRTIO_ID_NET

    def __init__(
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        address: Address,
        *,
        backend: VhostUser,
    ) -> None:
        features = net.F_MAC | net.F_STATUS | backend.features() & net.PACKETS
        features |= net.F_MTU if address.mtu else 0
        super().__init__(name, memory, events, SIZES, features, backend=backend)
        self._config = address.config()

    def config(self) -> bytes:
        """Return ``struct virtio_net_config`` (5.1.4)."""
        return self._config
