"""Route guest accesses to the devices that own the addresses."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, Protocol

from vmm.address_range import AddressRange


class BusDevice(Protocol):
    """What the bus asks of a device.

    Offsets are from the device's own base, in bytes; sizes are 1, 2, 4 or 8 bytes. Calls come
    from every vCPU's thread at once: a device with state has a lock.
    """

    def read(self, offset: int, size: int) -> int:
        """Return what the guest's load sees."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Take what the guest's store wrote."""


class Window(NamedTuple):
    """Guest physical *addresses*, owned by *device*."""

    addresses: AddressRange
    device: BusDevice


class AddressMap:
    """What a bus looks like at one time; never changed, for vCPU threads may be reading it."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = sorted(windows, key=lambda window: window.addresses)
        self.bases = [window.addresses.base for window in self.windows]
        self.ends = [window.addresses.end for window in self.windows]


class MmioBus:
    """The guest physical addresses that are not memory.

    An access belongs to a device only if all of it does. Accesses that nobody owns read as
    zero and are dropped, as on most boards, or as on the bus whose addresses they are; each is
    counted, so that a confused driver shows.
    """

    def __init__(self) -> None:
        self._map = AddressMap([])
        self._empty: list[tuple[AddressRange, int]] = []
        self.unclaimed = 0

    def attach(self, base: int, size: int, device: BusDevice) -> None:
        """Give [base, base + size) to *device*. Raises ValueError if part of it is taken."""
        new = Window(AddressRange(base, size), device)
        for window in self._map.windows:
            if window.addresses.overlaps(new.addresses):
                raise ValueError(f"{new.addresses} overlaps {window.device} at {window.addresses}")
        self._map = AddressMap([*self._map.windows, new])

    def detach(self, base: int) -> None:
        """Take the device at *base* off the bus. Raises ValueError if none begins there.

        A vCPU may be in it still: an access that had found it ends as if it came before.
        """
        left = [window for window in self._map.windows if window.addresses.base != base]
        if len(left) == len(self._map.windows):
            raise ValueError(f"nothing begins at {base:#x}")
        self._map = AddressMap(left)

    def fill(self, base: int, size: int, byte: int) -> None:
        """Have [base, base + size) read as *byte*, over and over, where no device is."""
        self._empty = [*self._empty, (AddressRange(base, size), byte)]

    def find(self, address: int, size: int) -> Window | None:
        """Return the window that holds all of [address, address + size)."""
        present = self._map
        index = bisect_right(present.bases, address) - 1
        if index >= 0 and address + size <= present.ends[index]:
            return present.windows[index]
        return None

    def read(self, address: int, size: int) -> int:
        """Read *size* bytes of a device register."""
        window = self.find(address, size)
        if window is None:
            self.unclaimed += 1
            bytes_ = (byte for addresses, byte in self._empty if addresses.contains(address))
            return int.from_bytes(bytes([next(bytes_, 0)]) * size, "little")
        return window.device.read(address - window.addresses.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write *size* bytes of a device register."""
        window = self.find(address, size)
        if window is None:
            self.unclaimed += 1
            return
        window.device.write(address - window.addresses.base, size, value)
