"""The file system device (VIRTIO 1.2, 5.11), served by virtiofsd over vhost-user.

served --the daemon dies--> orphaned --FUSE_INIT, from a new mount--> served, by another daemon
                               |
                         answers each request with ENOTCONN, as Linux does for any FUSE daemon

Open files are state of the daemon and die with it; their numbers would mean other files to the
next one. So an existing mount stays dead, and a new mount works.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vmm._native import ffi, lib
from vmm.errors import HostError, host_errors
from vmm.virtio.queue import RingError
from vmm.virtio.vhost.user import VhostUser
from vmm.virtio.vhost.user_device import VhostUserDevice

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.virtio.queue import Chain, MemoryMap, Queue
    from vmm.virtio.vhost.service import Service

REQUEST_QUEUES: Final = 1
QUEUE_SIZE: Final = 1024
"""Linux limits a request to as many pages as a queue has descriptors: these allow 1 MiB or more."""

IN: Final = "struct fuse_in_header"
OUT: Final = "struct fuse_out_header"
WITHOUT_REPLY: Final = (lib.FUSE_FORGET, lib.FUSE_BATCH_FORGET)


class Fs(VhostUserDevice):
    """A directory that the guest mounts by its *tag*. Owns *service*, which starts daemons."""

    device_id: int = lib.VIRTIO_ID_FS

    def __init__(
        self, name: str, memory: MemoryMap, events: Events, service: Service, tag: str
    ) -> None:
        backend = VhostUser(service)
        try:
            sizes = [QUEUE_SIZE] * (1 + REQUEST_QUEUES)  # the first is for urgent requests
            super().__init__(name, memory, events, sizes, 0, backend=backend)
        except BaseException:
            backend.close()
            raise
        config: Any = ffi.new("struct virtio_fs_config *")
        ffi.memmove(config.tag, tag.encode(), len(tag.encode()))
        config.num_request_queues = REQUEST_QUEUES
        self._config = bytes(ffi.buffer(config))
        self._adopting = False

    def config(self) -> bytes:
        """Return ``struct virtio_fs_config`` (5.11.4)."""
        return self._config

    # Without a daemon

    def revive(self) -> None:
        """Serve the queues here until there is a new mount. Raises `HostError`."""
        bases = self.backend.requeue()
        self.backend.stop()
        for index in self._serving:
            queue = self.slots[index].queue
            assert queue is not None, "it is served"
            queue.resume(bases[index])
            self.unwatch(self._errors[index].fileno())
            self._answer(index)
        self._complain("fs-disconnected")

    def _answer(self, index: int) -> None:
        """Answer the requests in queue *index*, present and future."""
        bell = self.slots[index].doorbell
        self._own.add(index)
        self.watch(bell.fileno(), partial(self._process, index))
        bell.signal()

    def serve(self, index: int, queue: Queue) -> None:
        """Refuse all requests; the first one of a new mount starts another daemon."""
        if self._adopting:
            return
        for chain in queue.batch(queue.size):
            header: Any = ffi.from_buffer(f"{IN} *", chain.read(ffi.sizeof(IN)).ljust(64, b"\0"))
            if header.opcode == lib.FUSE_INIT and index:
                queue.put_back(chain.id)
                self._adopt()
                return
            queue.push(chain.id, refuse(chain, header))

    def _adopt(self) -> None:
        """Start another daemon, in a thread of its own; it serves from the waiting request on."""
        self._adopting = True
        for index in self._own:
            self.unwatch(self.slots[index].doorbell.fileno())
        self._begin(self._connect, "adoption")

    def _connect(self, drivers: int) -> None:
        with self._succession(drivers) as wanted:
            if not wanted or not self._own:
                return
            self._adopting = False
            try:
                with host_errors(self.name):
                    self._have_served()
            except HostError as error:
                self._complain("vhost-failed", error=str(error))
                self.backend.stop()
                for index in self._own:
                    self.unwatch(self._errors[index].fileno())
                self._refuse_mounts()
                return
            self._own.clear()
            self._complain("vhost-user-restarted")

    def _have_served(self) -> None:
        """Hand our queues to a daemon at their present position. Raises `HostError`, OSError."""
        self.backend.start(self.accepted, self._guest_memory)
        for index in self._own:
            queue = self.slots[index].queue
            assert queue is not None, "it is served"
            ring = self._ring(index, queue)._replace(base=queue.next_available)
            self.backend.start_ring(index, ring)
        for index in self._own:
            self.watch(self._errors[index].fileno(), partial(self._ring_failed, index))
            self.slots[index].doorbell.signal()
        self._listen()

    def _refuse_mounts(self) -> None:
        for index in list(self._own):
            try:
                self._refuse_mount(index)
            except RingError as error:  # the driver has changed the ring since
                self._break(error, index)
                return

    def _refuse_mount(self, index: int) -> None:
        """Refuse the first request of a new mount, because no daemon can be started.

        Raises `RingError`.
        """
        queue = self.slots[index].queue
        assert queue is not None, "it is served"
        chain = queue.pop()
        if chain is not None:
            header: Any = ffi.from_buffer(f"{IN} *", chain.read(ffi.sizeof(IN)).ljust(64, b"\0"))
            queue.push(chain.id, refuse(chain, header))
            assert self.interrupts is not None, "a transport comes first"
            self.interrupts.used(index)
        self._answer(index)

    def stopped(self) -> None:
        """End the daemon of this driver; the next driver gets another."""
        self._adopting = False
        super().stopped()


def refuse(chain: Chain, header: Any) -> int:
    """Answer the request in *chain* with ENOTCONN; return how many bytes that took.

    *header* is the request's ``struct fuse_in_header``.
    """
    if header.opcode in WITHOUT_REPLY or chain.writable < ffi.sizeof(OUT):
        return 0
    size = ffi.sizeof(OUT)
    answer: Any = ffi.new(f"{OUT} *", (size, -errno.ENOTCONN, header.unique))
    return chain.write(ffi.buffer(answer))
