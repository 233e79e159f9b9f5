"""A region as a bus device: accesses that go to no memory slot."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from vmm.events import Bounded
from vmm.vfio.fd import VfioError

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.vfio.region import VfioRegion


class TrappedRegion:
    """Bytes [offset, offset + size) of a region, through VFIO for each access.

    When the device does not answer, because its memory is off or it has been unplugged, reads
    return ones and writes are dropped, as on a PCI bus where nobody claims the access. The first
    such access is an event, and the first after it has answered again.
    """

    def __init__(self, region: VfioRegion, offset: int, size: int, events: Events) -> None:
        self.size = size
        self._region = region
        self._offset = offset
        self._events = Bounded(events)
        self._lock = Lock()
        self._detached = False
        self._silent = False

    def read(self, offset: int, size: int) -> int:
        """Return what the guest reads; ones if the device does not answer."""
        with self._lock:
            if not self._detached:
                try:
                    value = self._region.read(self._offset + offset, size)
                except VfioError as error:
                    self._note(error)
                else:
                    self._silent = False
                    return value
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write for the guest."""
        with self._lock:
            if not self._detached:
                try:
                    self._region.write(self._offset + offset, size, value)
                except VfioError as error:
                    self._note(error)

    def detach(self) -> None:
        """Stop using the device. When this returns, no access is under way.

        To be called before the device is closed, as its descriptor's number may be reused.
        """
        with self._lock:
            self._detached = True

    def _note(self, error: VfioError) -> None:
        if not self._silent:
            self._silent = True
            self._events.emit(
                "vfio-no-answer",
                device=self._region.bdf,
                region=self._region.index,
                error=str(error),
            )
