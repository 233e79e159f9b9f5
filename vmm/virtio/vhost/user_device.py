"""A device that a daemon serves over vhost-user, and how it survives the daemon's death.

    live --the daemon is gone--> revived: another one goes on at the right places in the rings
                           |
                           '---> broken (NEEDS_RESET) if that fails

The holder of the device's lock may wait for a daemon. So nobody who must not wait blocks on the
lock: the loop comes again later, and whoever ends a driver or the machine kills the daemon.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from threading import Condition
from typing import TYPE_CHECKING, Final

from vmm import thread
from vmm.errors import HostError, host_errors
from vmm.virtio.vhost.device import TURN, VhostDevice
from vmm.virtio.vhost.user import DaemonLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.virtio.queue import MemoryMap, Queue
    from vmm.virtio.vhost.user import VhostUser

RESTARTS: Final = 5
RESTARTS_WITHIN: Final = 60.0
"""Seconds in which a daemon may die `RESTARTS` times before the device breaks."""


class VhostUserDevice(VhostDevice):
    """A device that *backend*, a daemon, serves. Owns *backend*."""

    backend: VhostUser

    def __init__(  # noqa: PLR0913  (all independent)
        self,
        name: str,
        memory: MemoryMap,
        events: Events,
        queue_sizes: Sequence[int],
        features: int,
        *,
        backend: VhostUser,
    ) -> None:
        super().__init__(name, memory, events, queue_sizes, features, backend=backend)
        backend.before_hang_up = self.unwatch
        self._drivers = 0
        """Counts drivers, so that work begun for one is not done to the next."""
        self._taking_over = False
        """Whether the lock's holder is starting another daemon."""
        self._deaths: list[float] = []
        self._recovering = False
        """Whether a thread replaces the daemon, or will once the machine is resumed."""
        self._resumed = Condition(self._lock)

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Prepare for a driver, and watch for the daemon's end. Called with the lock."""
        super().prepare(features, memory)
        self._listen()

    def _listen(self) -> None:
        self.watch(self.backend.connection, self._lost)

    def _lost(self) -> None:
        """Begin to recover: the daemon is gone, or sent something unasked. Called with the lock."""
        self.unwatch(self.backend.connection)
        self._begin_recovery()

    def _begin_recovery(self) -> None:
        self._recovering = True
        self._begin(self._recover, "revival")

    def _begin(self, what: Callable[[int], None], name: str) -> None:
        """Call *what* in a thread of its own: a daemon is slow, and the loop has other devices."""
        try:
            thread.start(f"{self.name}-{name}", what, self._drivers)
        except HostError as error:
            self._break(error, 0)

    @contextmanager
    def _succession(self, drivers: int) -> Iterator[bool]:
        """Hold the lock while a daemon takes over; yield whether it is still wanted.

        While the machine is paused, wait without the lock.
        """
        with self._lock:
            self._resumed.wait_for(lambda: not self._paused or drivers != self._drivers)
            self._taking_over = True
            try:
                yield self._wanted(drivers)
            finally:
                self._taking_over = False

    def _wanted(self, drivers: int) -> bool:
        """Tell whether driver number *drivers* is still there and the device live."""
        return drivers == self._drivers and self.live

    def _recover(self, drivers: int) -> None:
        reason = self.backend.explain()  # without the lock, as this waits
        with self._succession(drivers) as wanted:
            if drivers == self._drivers:
                self._recovering = False
            if not wanted or not self._serving:
                return
            self.backend.kill()
            self._complain("vhost-user-lost", error=reason)
            while self._wanted(drivers):
                try:
                    self._count()
                    with host_errors(self.name):
                        self.revive()
                except DaemonLostError:
                    continue
                except HostError as error:
                    self._break(HostError(f"{reason}; {error.message}"), 0)
                return

    # Pause

    def queue_paused(self, index: int) -> None:
        """Let the daemon finish with the queue. One that cannot is killed, and replaced later."""
        if self._is_served(index):
            self._try_daemon(partial(self.backend.pause_ring, index))

    def queue_resumed(self, index: int, queue: Queue) -> None:  # noqa: ARG002
        """Let the daemon go on with the queue, or another one if it is gone."""
        if self._is_served(index):
            self._try_daemon(partial(self.backend.resume_ring, index))

    def _is_served(self, index: int) -> bool:
        return index in self._serving and index not in self._own and not self._recovering

    def _try_daemon(self, what: Callable[[], None]) -> None:
        try:
            what()
        except HostError:
            self._begin_recovery()

    def resume(self) -> None:
        """Serve the queues again. A takeover that waited for this goes on."""
        super().resume()
        with self._lock:
            self._resumed.notify_all()

    # End

    def cancel_waits(self) -> None:
        """Kill the daemon if somebody holds the lock, who then waits for it."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self.backend.cancel_waits()

    def reset(self) -> None:
        """Return to the state after power-on. Cancel a takeover, which nobody needs any more."""
        self._drivers += 1
        while not self._lock.acquire(timeout=TURN):
            if self._taking_over:
                self.backend.cancel_waits()
        self._recovering = False
        self._resumed.notify_all()
        self._lock.release()
        super().reset()

    def _count(self) -> None:
        """Count a death. Raises `HostError` if there were too many of late."""
        now = time.monotonic()
        self._deaths = [then for then in self._deaths if now - then < RESTARTS_WITHIN] + [now]
        if len(self._deaths) > RESTARTS:
            raise HostError(
                f"that was the {len(self._deaths)}th time in {RESTARTS_WITHIN:.0f} s: given up"
            )

    def revive(self) -> None:
        """Replace the daemon that is gone. Called with the lock. Raises `HostError`."""
        assert self.interrupts is not None, "a transport comes first"
        self.backend.restart(self._guest_memory)
        self._listen()
        for index in self._serving:
            # The daemon may have taken a notification, or used buffers without an interrupt.
            self.slots[index].doorbell.signal()
            self.interrupts.used(index)
        self._complain("vhost-user-restarted")
