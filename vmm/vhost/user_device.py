"""A device that a daemon serves over vhost-user, and how it survives the daemon's death.

live --the daemon is gone--> revived: another one goes on at the right places in the rings
                       |
                       '---> broken (NEEDS_RESET), if that cannot be
"""

from __future__ import annotations

import time
from threading import Thread
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError
from vmm.vhost.device import VhostDevice
from vmm.vhost.user import DaemonLostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.events import Events
    from vmm.memory import GuestMemory
    from vmm.vhost.user import VhostUser
    from vmm.virtio.queue import MemoryMap

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
        """How many drivers there were: what is done for one is not to be done to the next."""
        self._deaths: list[float] = []

    def prepare(self, features: int, memory: GuestMemory) -> None:
        """Begin with a driver, and listen for the daemon's end. With the lock."""
        self._drivers += 1
        super().prepare(features, memory)
        self._listen()

    def _listen(self) -> None:
        self.watch(self.backend.connection, self._lost)

    def _lost(self) -> None:
        """Begin to recover: whether it is at its end, or says what nobody asked. With the lock."""
        self.unwatch(self.backend.connection)
        # In a thread of its own: a new daemon takes its time, and the loop has others to serve.
        Thread(
            target=self._recover, args=(self._drivers,), name=f"{self.name}-revival", daemon=True
        ).start()

    def _recover(self, drivers: int) -> None:
        with self._lock:
            if drivers != self._drivers or not self.live or not self._serving:
                return
            reason = self.backend.explain()
            self.backend.kill()
            self._complain("vhost-user-lost", error=reason)
            again = True
            while again:
                again = False
                try:
                    self._count()
                    self.revive()
                except DaemonLostError:
                    again = True
                except HostError as error:
                    self._break(HostError(f"{reason}; {error.message}"), 0)

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
            self.slots[index].doorbell.ring()  # it may have swallowed the driver's
            self.interrupts.used(index)  # and not have told of what it used
        self._events.emit("vhost-user-restarted", device=self.name)
