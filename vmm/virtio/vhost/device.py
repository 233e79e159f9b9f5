"""A virtio device whose rings a vhost back end serves; registers, features and status are here.

VirtioDevice  --queue started, stopped-->  VhostDevice  --rings-->  VhostBackend
              <--------- breaks ----------      |       <---err----
                                    queues that are served here
"""

from __future__ import annotations

import select
from contextlib import ExitStack
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
"""Seconds that the loop waits for the lock: it has other devices to serve."""


class RingBrokenError(HostError):
    """The back end found a ring broken and stopped serving it."""


class VhostDevice(VirtioDevice):
    """A device that *backend* serves. Owns *backend*.

    features  the feature bits of the device's kind to offer; ring features are the back end's

    Raises `HostError` if the back end does not support VIRTIO 1.
    """

    has_threads = True
    unmovable = "pyvmm cannot collect the state of what serves it"

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
        with ExitStack() as undo:
            undo.callback(self._close_doorbells)
            self._errors = [undo.enter_context(EventFd()) for _ in queue_sizes]
            self._watch = select.epoll()
            undo.pop_all()
        """The descriptors that the loop watches; they differ from driver to driver."""
        self._handlers: dict[int, Callable[[], object]] = {}

    # For kinds of device to override

    def is_ours(self, index: int) -> bool:  # noqa: ARG002
        """Tell whether queue *index* is served here (`serve`) and not by the back end.

        May depend on the `accepted` features.
        """
        return False

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Prepare for a driver that accepted *features*. Called with the lock.

        Raises `HostError`.
        """
        self.backend.start(features, memory)

    # Queues; called with the lock

    def queue_started(self, index: int, queue: Queue) -> None:
        """Hand the queue to the back end, or watch its doorbell."""
        if self.is_ours(index):
            self._own.add(index)
            self.watch(self.slots[index].doorbell.fileno(), partial(self._process, index))
            return
        try:
            with host_errors(self.name):  # out of descriptors: many vectors use them up
                if not self._prepared:
                    self._prepared = True  # even a failed start has to be undone
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
            observer=slot.observer,
        )

    def queue_stopped(self, index: int) -> None:
        """Take the queue back from the back end, or stop watching its doorbell."""
        if index in self._own:
            self._own.remove(index)
            self.unwatch(self.slots[index].doorbell.fileno())
        if index in self._serving:
            self._serving.remove(index)
            self.unwatch(self._errors[index].fileno())
            self._try(partial(self.backend.stop_ring, index))
            self._errors[index].drain()

    def queue_paused(self, index: int) -> None:
        """Let the back end finish with the queue. Nothing to wait for in a queue of ours."""
        if index in self._serving:
            self._try(partial(self.backend.pause_ring, index))

    def queue_resumed(self, index: int, queue: Queue) -> None:  # noqa: ARG002
        """Let the back end go on with the queue; the device breaks if it cannot."""
        if index in self._serving:
            try:
                self.backend.resume_ring(index)
            except HostError as error:
                self._break(error, index)

    def stopped(self) -> None:
        """Stop the back end, which forgets the driver."""
        if self._prepared:
            self._prepared = False
            self._try(self.backend.stop)

    def _try(self, what: Callable[[], object]) -> None:
        """Call *what*. If it fails, the back end is gone, and there is nothing left to stop."""
        try:
            what()
        except HostError as error:
            self._complain("vhost-failed", error=str(error))

    def _ring_failed(self, index: int) -> None:
        self._break(RingBrokenError(self.backend.ring_error(index)), index)

    def fail(self, error: HostError, index: int = 0) -> None:
        """Break the device, because the back end failed. Thread-safe; without the lock."""
        with self._lock:
            self._break(error, index)

    # The event loop

    def watch(self, fd: int, on_readable: Callable[[], object]) -> None:
        """Call *on_readable* in the loop's thread while *fd* is readable, with the lock.

        Called with the lock. Raises OSError: out of memory or epoll watches.
        """
        self._watch.register(fd, select.EPOLLIN)
        self._handlers[fd] = on_readable

    def unwatch(self, fd: int) -> None:
        """Stop watching *fd*; harmless if it was not watched. Called with the lock."""
        if self._handlers.pop(fd, None) is not None:
            self._watch.unregister(fd)

    def readers(self) -> list[tuple[int, Callable[[], object]]]:
        """Return the one descriptor that the loop polls: an epoll of all the others."""
        return [(self._watch.fileno(), self.attend)]

    def attend(self) -> None:
        """Call the handlers of what is readable. Called in the loop's thread.

        If the lock's holder waits for the back end, leave it to the loop's next round.
        """
        if not self._lock.acquire(timeout=TURN):
            return
        try:
            for fd, _ in self._watch.poll(0) if not self._watch.closed else []:
                handler = self._handlers.get(fd)  # an earlier handler may have removed it
                if handler is not None:
                    handler()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Reset the device, and close the back end. Idempotent."""
        super().close()
        self.backend.close()
        self._watch.close()
        for error in self._errors:
            error.close()
