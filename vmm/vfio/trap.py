"""A region whose accesses are trapped: a device on the guest's bus, without a memory slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.vfio.fd import VfioError

if TYPE_CHECKING:
    from vmm.events import Events
    from vmm.vfio.region import Region


NOTES: Final = 100
"""How many events a region can cause: a guest that switches memory off must not fill a disk."""


class TrappedRegion:
    """Bytes [offset, offset + size) of a region, read and written through VFIO, one by one.

    When the device does not answer, because its memory is off or it has been unplugged, reads
    are all ones and writes are lost, as on a PCI bus where nobody claims the access; the first
    time is an event, and again after it has answered.
    """

    def __init__(self, region: Region, offset: int, size: int, events: Events) -> None:
        self.size = size
        self._region = region
        self._offset = offset
        self._events = events
        self._silent = False
        self._notes = 0

    def read(self, offset: int, size: int) -> int:
        """Read as the guest does."""
        try:
            value = self._region.read(self._offset + offset, size)
        except VfioError as error:
            self._note(error)
            return (1 << 8 * size) - 1
        self._silent = False
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write as the guest does."""
        try:
            self._region.write(self._offset + offset, size, value)
        except VfioError as error:
            self._note(error)

    def _note(self, error: VfioError) -> None:
        if not self._silent and self._notes < NOTES:
            self._silent = True
            self._notes += 1
            self._events.emit(
                "vfio-no-answer",
                device=self._region.bdf,
                region=self._region.index,
                error=str(error),
            )
