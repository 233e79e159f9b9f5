"""The block device (VIRTIO 1.2, 5.2) whose queues a vhost-user daemon serves."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.errors import HostError, UserError
from vmm.virtio.block.registers import CONFIG_SIZE, FEATURES
from vmm.virtio.vhost.message import Protocol
from vmm.virtio.vhost.user import VhostUser
from vmm.virtio.vhost.user_device import VhostUserDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.virtio.queue import MemoryMap
    from vmm.virtio.vhost.service import Service

QUEUE_SIZE: Final = 128


class VhostUserBlk(VhostUserDevice):
    """A disk with *queues* queues that *service* serves. Owns *service*. Raises `HostError`.

    durable  writes outlive the daemon without a flush. If not, the death of the daemon breaks the
             disk, because the guest would never learn which writes are lost
    """

    device_id: int = lib.VIRTIO_ID_BLOCK

    def __init__(  # noqa: PLR0913  (all independent)
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        service: Service,
        *,
        queues: int = 1,
        durable: bool = True,
    ) -> None:
        self._durable = durable
        backend = VhostUser(service, Protocol.CONFIG)
        with ExitStack() as undo:
            undo.callback(backend.close)
            if 0 < backend.queues < queues:
                raise UserError(
                    f"{service.what}: the daemon has no more than {backend.queues} queues",
                    f"use queues={backend.queues} or fewer",
                )
            features = backend.features() & FEATURES
            self._config = backend.read_config(CONFIG_SIZE)
            super().__init__(name, memory, events, [QUEUE_SIZE] * queues, features, backend=backend)
            undo.pop_all()

    def revive(self) -> None:
        """Continue with another daemon if no write is lost. Raises `HostError`."""
        if not self._durable:
            raise HostError(
                "what was written and not flushed is lost",
                "with cache=writethrough nothing would be",
            )
        super().revive()

    def config(self) -> bytes:
        """Return the daemon's ``struct virtio_blk_config`` (5.2.4)."""
        return self._config
