"""A virtio device whose data path is a vhost back end's; we keep registers, features and status.

VirtioDevice  --queue started, stopped-->  VhostDevice  --rings-->  VhostBackend
              <--------- breaks ----------      |       <---err----
                                    queues that the back end has no part in
"""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError, host_errors
from vmm.fd import EventFd
from vmm.virtio.device import F_RING_PACKED, F_RING_RESET, F_VERSION_1, RING_FEATURES, VirtioDevice
from vmm.virtio.vhost.backend import PACKED_BASE, Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.virtio.queue import MemoryMap, Queue
    from vmm.virtio.vhost.backend import VhostBackend


TURN: Final = 0.05
"""Seconds that the loop gives who has the lock: others are to be served, too."""


class RingBrokenError(HostError):
    """The back end stopped serving a ring, for what it found in there."""


class VhostDevice(VirtioDevice):
    """A device that *backend* serves. Owns *backend*.

    features  the bits of the device's kind to offer, without those of rings, which are what the
              back end can do. Raises `HostError` if it can do no VIRTIO 1.
    """

    has_threads = True

    def __init__(  # noqa: PLR0913  (all independent)
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        queue_sizes: Sequence[int],
        features: int,
        *,
        backend: VhostBackend,
    ) -> None:
        can = backend.features()
        if not can & F_VERSION_1:
            raise HostError(f"{name}: its back end does not know VIRTIO 1", "use a newer one")
        super().__init__(name, memory, events, queue_sizes, features)
        self.offered = features | F_VERSION_1 | can & RING_FEATURES & ~F_RING_RESET
        if backend.resets_rings:
            self.offered |= F_RING_RESET
        self.backend = backend
        self._guest_memory = memory.memory
        self._prepared = False
        self._serving: set[int] = set()
        self._own: set[int] = set()
        self._errors = [EventFd() for _ in queue_sizes]
        self._watch = select.epoll()
        """All that the loop has to listen to, which differs from driver to driver."""
        self._handlers: dict[int, Callable[[], object]] = {}

    # What a kind of device provides

    def is_ours(self, index: int) -> bool:  # noqa: ARG002
        """Tell whether we serve queue *index* (`serve`), and the back end has no part in it.

        May depend on what was `accepted`.
        """
        return False

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Begin with a driver that accepted *features*. Raises `HostError`. With the lock."""
        self.backend.start(features, memory)

    # What happens to queues; with the lock

    def queue_started(self, index: int, queue: Queue) -> None:
        """Have the back end serve it, or listen for it."""
        if self.is_ours(index):
            self._own.add(index)
            self.watch(self.slots[index].doorbell.fileno(), partial(self._process, index))
            return
        try:
            with host_errors(self.name):  # no descriptors left: many vectors may use them
                if not self._prepared:
                    self._prepared = True  # whatever comes of it is to be undone
                    self.prepare(self.accepted, self._guest_memory)
                self._serving.add(index)
                self.backend.start_ring(index, self._ring(index, queue))
                self.watch(self._errors[index].fileno(), partial(self._ring_failed, index))
        except HostError as error:
            self._break(error, index)

    def _ring(self, index: int, queue: Queue) -> Ring:
        assert self.interrupts is not None, "a transport comes first"
        slot = self.slots[index]
        packed = bool(self.accepted & F_RING_PACKED)
        return Ring(
            size=slot.size,
            guest=slot.areas,
            host=queue.host_areas,
            packed=packed,
            base=PACKED_BASE if packed else 0,
            kick=slot.doorbell.fileno(),
            call=self.interrupts.of_queue(index).fileno(),
            err=self._errors[index].fileno(),
        )

    def queue_stopped(self, index: int) -> None:
        """Have nobody serve it."""
        if index in self._own:
            self._own.remove(index)
            self.unwatch(self.slots[index].doorbell.fileno())
        if index in self._serving:
            self._serving.remove(index)
            self.unwatch(self._errors[index].fileno())
            self._try(partial(self.backend.stop_ring, index))
            self._errors[index].drain()

    def stopped(self) -> None:
        """Have the back end forget the driver."""
        if self._prepared:
            self._prepared = False
            self._try(self.backend.stop)

    def _try(self, what: Callable[[], object]) -> None:
        """Do it; if it fails, the back end is at its end, and there is nothing left to stop."""
        try:
            what()
        except HostError as error:
            self._complain("vhost-failed", error=str(error))

    def _ring_failed(self, index: int) -> None:
        self._break(RingBrokenError(self.backend.ring_error(index)), index)

    def fail(self, error: HostError, index: int = 0) -> None:
        """Stand still, because the back end is at its end. From any thread, without the lock."""
        with self._lock:
            self._break(error, index)

    # What the loop does

    def watch(self, fd: int, on_readable: Callable[[], object]) -> None:
        """Have the loop call *on_readable*, while *fd* is readable; both with the lock.

        Raises OSError: no memory, too many watches.
        """
        self._watch.register(fd, select.EPOLLIN)
        self._handlers[fd] = on_readable

    def unwatch(self, fd: int) -> None:
        """End that; harmless if it was not watched. With the lock."""
        if self._handlers.pop(fd, None) is not None:
            self._watch.unregister(fd)

    def readers(self) -> list[tuple[int, Callable[[], object]]]:
        """Return the one thing that the loop has to listen to."""
        return [(self._watch.fileno(), self.attend)]

    def attend(self) -> None:
        """Do what is due. In the loop's thread.

        Who has the lock may wait for the back end: then it is for the loop's next round.
        """
        if not self._lock.acquire(timeout=TURN):
            return
        try:
            for fd, _ in self._watch.poll(0) if not self._watch.closed else []:
                handler = self._handlers.get(fd)  # an earlier one may have ended it
                if handler is not None:
                    handler()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Stop, and close the back end. Idempotent."""
        super().close()
        self.backend.close()
        self._watch.close()
        for error in self._errors:
            error.close()
