"""The expansion ROM, which firmware may run: the device's own, or a file's contents.

Source: PCI Local Bus Specification 3.0, 6.2.5.2 and 6.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.errors import UserError
from vmm.pci.bar import Bar, Space

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.bus import BusDevice
    from vmm.vfio.device import VfioDevice

ROM: Final[int] = lib.VFIO_PCI_ROM_REGION_INDEX
LEAST_ROM: Final = 2048
"""Bytes: the register's lower bits are not part of the address."""


class RomBar(Bar):
    """The expansion ROM: a BAR at 0x30, with an enable bit of its own."""

    def __init__(self, size: int, device: BusDevice) -> None:
        super().__init__(0, size, device, space=Space.MEMORY32)
        self.index = ROM

    @property
    def offset(self) -> int:
        """Offset in configuration space."""
        return int(lib.PCI_ROM_ADDRESS)

    @property
    def mask(self) -> int:
        """The bits that hold an address."""
        return super().mask & 0xFFFF_F800


class RomContents:
    """Read-only bytes as a bus device; beyond them it reads ones."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes."""
        return int.from_bytes(self._data[offset : offset + size].ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore it: ROM is read-only."""


def expansion_rom(device: VfioDevice, choice: Path | bool) -> RomBar:  # noqa: FBT001  (True: its own)
    """Return the ROM's BAR: *device*'s own, or a file's contents. Raises `UserError`."""
    data = _own(device) if isinstance(choice, bool) else _file(device, choice)
    size = max(LEAST_ROM, 1 << (len(data) - 1).bit_length())
    return RomBar(size, RomContents(data))


def _own(device: VfioDevice) -> bytes:
    region = next((one for one in device.regions if one.index == ROM), None)
    if region is None:
        raise UserError(
            f"--vfio {device.bdf},rom=on: the device shows no expansion ROM",
            "use rom=FILE, or leave rom out",
        )
    device.enable_memory()
    return region.read_bytes(0, region.size)


def _file(device: VfioDevice, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--vfio {device.bdf},rom={path}: {error.strerror}", "name a ROM image"
        ) from error
    if not data:
        raise UserError(f"--vfio {device.bdf},rom={path}: it is empty", "name a ROM image")
    return data
