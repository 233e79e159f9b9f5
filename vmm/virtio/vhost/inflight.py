"""Record which chains a daemon has, so that they are not lost if it dies (cdefs/inflight.h).

Neither qemu-storage-daemon nor virtiofsd implements the protocol's own record
(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD). This one needs nothing of a daemon but that it does not
suppress notifications. It costs a thread's wake-up for each notification. Split rings only.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vmm import thread
from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.errors import HostError, host_errors
from vmm.fd import EventFd

if TYPE_CHECKING:
    from threading import Thread

    from vmm.virtio.vhost.backend import Ring


class Inflight(Closeable):
    """A thread between the driver's doorbell and `kick`, which the daemon listens to.

    *ring*'s memory and doorbell must outlive it. Raises `HostError` if descriptors run out.
    """

    def __init__(self, ring: Ring) -> None:
        with host_errors("cannot make an eventfd"), ExitStack() as undo:
            self.kick = undo.enter_context(EventFd())
            self._stop = EventFd()
            undo.pop_all()
        self._keep = ffi.new("uint64_t[]", ring.size), ffi.new("uint8_t[]", ring.size)
        self.c: Any = ffi.new(
            "struct pyvmm_inflight *",
            {
                "size": ring.size,
                "driver": ffi.cast("uint8_t *", ring.host.driver),
                "device": ffi.cast("uint8_t *", ring.host.device),
                "since": self._keep[0],
                "count": self._keep[1],
                "avail": ring.base,
                "used": ring.base,
                "exact": 1,
                "doorbell": ring.kick,
                "kick": self.kick.fileno(),
                "stop": self._stop.fileno(),
            },
        )
        self._thread: Thread | None = None

    def start(self) -> None:
        """Pass notifications on from now on. Raises `HostError` if threads run out."""
        assert self._thread is None, "it was started"
        self._stop.drain()
        self._thread = thread.start("inflight", lib.pyvmm_inflight_run, self.c, kind=thread.QUEUE)

    def stop(self) -> None:
        """Pass no notifications on until `start`. Idempotent."""
        runs, self._thread = self._thread, None
        if runs is not None:
            self._stop.signal()
            runs.join()

    def requeue(self) -> int:
        """Make the daemon's chains available to another one; return the index it begins with.

        Stops first. The daemon must be gone. Raises `HostError` if it is not known what it had.
        """
        self.stop()
        base = int(lib.pyvmm_inflight_requeue(self.c, ffi.new("uint16_t[]", self.c.size)))
        if base < 0:
            raise HostError("it is not known which requests the process had")
        return base

    def close(self) -> None:
        """Stop, and close the eventfds. Idempotent."""
        self.stop()
        self.kick.close()
        self._stop.close()


def take_over(ring: Ring) -> int:
    """Return the index at which another daemon goes on in *ring*, a split ring used in order.

    The unused chains are those that follow in the available ring (2.7.6, 2.7.8). Notifications are
    turned on again: the daemon that is gone may have turned them off.
    """
    used = ffi.cast("uint16_t *", ring.host.device)  # flags, and index
    used[0] = 0
    return int(used[1])
