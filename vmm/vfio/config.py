"""A device's configuration space through VFIO, which virtualises part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmm.vfio.region import VfioRegion

VENDOR: Final = 0x00
DEVICE: Final = 0x02
COMMAND: Final = 0x04
COMMAND_MEMORY: Final = 1 << 1
COMMAND_MASTER: Final = 1 << 2
"""PCI Local Bus Specification 3.0, sections 6.1 and 6.2.2: registers of a type 0 header."""


class DeviceConfigSpace:
    """Reads and writes of configuration space, as bytes of a `VfioRegion`."""

    def __init__(self, region: VfioRegion) -> None:
        self._region = region

    @property
    def size(self) -> int:
        """256 bytes, or 4096 for PCI Express."""
        return self._region.size

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes at *offset*. Raises `VfioError`."""
        return self._region.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write *size* bytes at *offset*. Raises `VfioError`."""
        self._region.write(offset, size, value)

    def set_command(self, bits: int) -> None:
        """Set bits of the command register. Raises `VfioError`."""
        self.write(COMMAND, 2, self.read(COMMAND, 2) | bits)

    def clear_command(self, bits: int) -> None:
        """Clear bits of the command register. Raises `VfioError`."""
        self.write(COMMAND, 2, self.read(COMMAND, 2) & ~bits)
