"""Route guest accesses to the devices that own the addresses."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, Protocol

from vmm.address_range import AddressRange


class BusDevice(Protocol):
    """A device on the bus.

    Offsets are from the device's base, in bytes; sizes are 1, 2, 4 or 8 bytes. The threads of all
    vCPUs call concurrently: a device with state has a lock.
    """

    def read(self, offset: int, size: int) -> int:
        """Return the value that the guest's load gets."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Handle the guest's store of *value*."""


class Window(NamedTuple):
    """Guest physical *addresses*, owned by *device*."""

    addresses: AddressRange
    device: BusDevice


class AddressMap:
    """The windows of a bus at one time. Immutable, because vCPU threads read it without a lock."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = sorted(windows, key=lambda window: window.addresses)
        self.bases = [window.addresses.base for window in self.windows]
        self.ends = [window.addresses.end for window in self.windows]


class MmioBus:
    """The guest physical addresses that are not memory.

    An access belongs to a device only if all its bytes do. Elsewhere loads return zero, as on most
    boards, or the byte that `fill` has set; stores are dropped. `unclaimed` counts both, so that
    a confused driver shows.
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

        A vCPU thread may still be in the device: its access counts as earlier than this.
        """
        left = [window for window in self._map.windows if window.addresses.base != base]
        if len(left) == len(self._map.windows):
            raise ValueError(f"nothing begins at {base:#x}")
        self._map = AddressMap(left)

    def fill(self, base: int, size: int, byte: int) -> None:
        """Let loads from [base, base + size) return *byte*, repeated, where there is no device."""
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
