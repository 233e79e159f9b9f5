"""A device that a daemon serves over vhost-user, and how it survives the daemon's death.

live --the daemon is gone--> revived: another one goes on at the right places in the rings
                       |
                       '---> broken (NEEDS_RESET), if that cannot be

Whoever has the device's lock may wait for a daemon. So nobody who must not wait takes it just so:
the loop comes again, and who ends a driver or the machine has the daemon killed.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vmm import thread
from vmm.errors import HostError, host_errors
from vmm.virtio.vhost.device import TURN, VhostDevice
from vmm.virtio.vhost.user import DaemonLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.virtio.queue import MemoryMap
    from vmm.virtio.vhost.user import VhostUser

RESTARTS: Final = 5
RESTARTS_WITHIN: Final = 60.0
"""Seconds: a daemon that dies more often than that is not worth starting."""


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
        """Changes with each driver: what is done for one is not to be done to the next."""
        self._taking_over = False
        """Whether who has the lock is about to have another daemon."""
        self._deaths: list[float] = []

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Begin with a driver, and listen for the daemon's end. With the lock."""
        super().prepare(features, memory)
        self._listen()

    def _listen(self) -> None:
        self.watch(self.backend.connection, self._lost)

    def _lost(self) -> None:
        """Begin to recover: whether it is at its end, or says what nobody asked. With the lock."""
        self.unwatch(self.backend.connection)
        self._begin(self._recover, "revival")

    def _begin(self, what: Callable[[int], None], name: str) -> None:
        """Do *what* in a thread of its own: daemons take their time, and the loop has others."""
        try:
            thread.start(f"{self.name}-{name}", what, self._drivers)
        except HostError as error:
            self._break(error, 0)

    @contextmanager
    def _succession(self, drivers: int) -> Iterator[bool]:
        """Have the lock while a daemon takes over; tell whether it still shall."""
        with self._lock:
            self._taking_over = True
            try:
                yield self._wanted(drivers)
            finally:
                self._taking_over = False

    def _wanted(self, drivers: int) -> bool:
        """Tell whether that driver is still there, and has use for a daemon."""
        return drivers == self._drivers and self.live

    def _recover(self, drivers: int) -> None:
        reason = self.backend.explain()  # which takes its time
        with self._succession(drivers) as wanted:
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

    def cancel_waits(self) -> None:
        """Have the daemon killed that somebody waits for who has the lock."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self.backend.cancel_waits()

    def reset(self) -> None:
        """Be as after power-on. One that is about to take over has nothing to wait for."""
        self._drivers += 1
        while not self._lock.acquire(timeout=TURN):
            if self._taking_over:
                self.backend.cancel_waits()
        self._lock.release()
        super().reset()

    def _count(self) -> None:
        """Raise `HostError` if the daemon has died too often."""
        now = time.monotonic()
        self._deaths = [then for then in self._deaths if now - then < RESTARTS_WITHIN] + [now]
        if len(self._deaths) > RESTARTS:
            raise HostError(
                f"that was the {len(self._deaths)}th time in {RESTARTS_WITHIN:.0f} s: given up"
            )

    def revive(self) -> None:
        """Go on without the daemon that there was. Raises `HostError`. With the lock."""
        assert self.interrupts is not None, "a transport comes first"
        self.backend.restart(self._guest_memory)
        self._listen()
        for index in self._serving:
            self.slots[index].doorbell.signal()  # it may have swallowed the driver's
            self.interrupts.used(index)  # and not have told of what it used
        self._complain("vhost-user-restarted")
