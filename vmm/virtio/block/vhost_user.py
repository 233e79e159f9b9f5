"""A block device (VIRTIO 1.2, 5.2) that a vhost-user daemon serves."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.errors import HostError, UserError
from vmm.virtio.block import device
from vmm.virtio.vhost.message import Protocol
from vmm.virtio.vhost.user import VhostUser
from vmm.virtio.vhost.user_device import VhostUserDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.virtio.queue import MemoryMap
    from vmm.virtio.vhost.service import Service

QUEUE_SIZE: Final = 128

FEATURES: Final = (
    device.F_SEG_MAX
    | device.F_RO
    | device.F_BLK_SIZE
    | device.F_FLUSH
    | device.F_MQ
    | device.F_DISCARD
    | device.F_WRITE_ZEROES
)
"""What is passed on of what a daemon offers: all that needs nothing but it and the driver."""

CONFIG_SIZE: Final = ffi.offsetof("struct virtio_blk_config", "write_zeroes_may_unmap") + 4
"""Bytes of configuration that those features are about; old daemons have no more."""


class VhostUserBlk(VhostUserDevice):
    """A disk with *queues* queues that *service* serves. Owns *service*. Raises `HostError`.

    durable  what was written, and not flushed, outlives the daemon; else its death is one of the
             disk, for a guest would never hear of what is missing
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
        """Go on with another daemon, if nothing is lost. Raises `HostError`."""
        if not self._durable:
            raise HostError(
                "what was written and not flushed is lost",
                "with cache=writethrough nothing would be",
            )
        super().revive()

    def config(self) -> bytes:
        """Return ``struct virtio_blk_config`` (5.2.4), as the daemon has it."""
        return self._config
