"""The network device whose queues a vhost-user daemon serves: passt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.virtio.net.registers import QUEUE_SIZE
from vmm.virtio.vhost.user_device import VhostUserDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.virtio.net.registers import Address
    from vmm.virtio.queue import MemoryMap
    from vmm.virtio.vhost.user import VhostUser

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
        features = address.features(backend.features())
        super().__init__(name, memory, events, SIZES, features, backend=backend)
        self._config = address.config()

    def config(self) -> bytes:
        """Return ``struct virtio_net_config`` (5.1.4)."""
        return self._config
