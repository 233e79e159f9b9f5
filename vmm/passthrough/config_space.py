"""Configuration space of a passed-through device: bits of the device's, bits of ours.

    reads    our bits where we define some, the device's through VFIO elsewhere
    writes   change our bits as defined; bytes that are not all ours go to the device as well

VFIO drops writes that a user may not make (drivers/vfio/pci/vfio_pci_config.c). Ours are the bits
that have another meaning in the guest: where BARs are and whether they answer, messages, and which
capabilities there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.errors import VmmError
from vmm.passthrough import capability_list
from vmm.pci.config import SIZE, ConfigSpace

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.vfio.config import DeviceConfigSpace

_INTEGRATED: Final = {lib.PCI_EXP_TYPE_ENDPOINT, lib.PCI_EXP_TYPE_LEG_END}
"""Endpoints that become root complex integrated ones: in the guest they are on the root bus."""

_LINK: Final = range(lib.PCI_EXP_LNKCAP, lib.PCI_EXP_SLTCAP)
_LINK2: Final = range(lib.PCI_EXP_LNKCAP2, lib.PCI_EXP_SLTCAP2)
"""Registers of the PCI Express capability that such an endpoint lacks: it has no link."""

_HAS_LINK2: Final = 2
"""The version of that capability from which on it has the second set."""


class PassthroughConfigSpace(ConfigSpace):
    """Configuration space of *device*. Calls come with the host bridge's lock.

    *lost* gets the error when the device does not answer; the guest then reads ones.
    """

    def __init__(self, device: DeviceConfigSpace, lost: Callable[[VmmError], None]) -> None:
        """Read the device's, which has been reset. Raises `VfioError`."""
        super().__init__()
        self._device: DeviceConfigSpace | None = device
        self._lost = lost
        self._ours = bytearray(SIZE)
        self.size = min(device.size, SIZE)
        read = device.read
        self.capabilities = {one.kind: one.offset for one in capability_list.capabilities(read)}
        """Offsets of the device's capabilities, by PCI_CAP_ID_*."""
        self._define_header(device)
        for offset, value in capability_list.links(read).items():
            self.define(offset, bytes([value]))
        for offset, value in capability_list.extended_headers(read, self.size).items():
            self.define(offset, value.to_bytes(4, "little"))
        self._define_express(device)

    def define(self, offset: int, value: bytes, writable: bytes = b"", clears: bytes = b"") -> None:
        """Define *value* at *offset* as `ConfigSpace.define` does, as bytes of ours."""
        super().define(offset, value, writable, clears)
        self._ours[offset : offset + len(value)] = b"\xff" * len(value)

    def _define_header(self, device: DeviceConfigSpace) -> None:
        """Define what `vmm.pci.function.PciFunction` does not, and BARs that the device lacks."""
        self.define(lib.PCI_LATENCY_TIMER, bytes(1))
        # Without the multi-function bit: other functions are passed by themselves, if at all.
        kind = device.read(lib.PCI_HEADER_TYPE, 1) & lib.PCI_HEADER_TYPE_MASK
        self.define(lib.PCI_HEADER_TYPE, bytes([kind]))
        self.define(lib.PCI_BASE_ADDRESS_0, bytes(24))
        self.define(lib.PCI_ROM_ADDRESS, bytes(4))

    def _define_express(self, device: DeviceConfigSpace) -> None:
        base = self.capabilities.get(lib.PCI_CAP_ID_EXP)
        if base is None:
            return
        flags = device.read(base + lib.PCI_EXP_FLAGS, 2)
        kind = (flags & lib.PCI_EXP_FLAGS_TYPE) >> 4
        if kind not in _INTEGRATED:
            return
        flags = flags & ~lib.PCI_EXP_FLAGS_TYPE | lib.PCI_EXP_TYPE_RC_END << 4
        self.define(base + lib.PCI_EXP_FLAGS, flags.to_bytes(2, "little"))
        version = flags & 0xF
        for registers in (_LINK, _LINK2) if version >= _HAS_LINK2 else (_LINK,):
            self.define(base + registers.start, bytes(len(registers)))

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes as the guest sees them."""
        own = super().read(offset, size)
        ours = int.from_bytes(self._ours[offset : offset + size], "little")
        every = (1 << 8 * size) - 1
        if ours == every or offset + size > self.size:
            return own
        return own & ours | self._read_device(offset, size) & ~ours & every

    def _read_device(self, offset: int, size: int) -> int:
        device = self._device  # `detach` may come meanwhile
        if device is not None:
            try:
                return device.read(offset, size)
            except VmmError as error:
                self._lost(error)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write for the guest: our bits here, the device's bytes through VFIO."""
        super().write(offset, size, value)
        ours = self._ours[offset : offset + size]
        if offset + size > self.size or ours == b"\xff" * size:
            return
        if any(ours):  # an access to both: the device gets only its own bytes
            for at, byte in enumerate(value.to_bytes(size, "little")):
                if not ours[at]:
                    self.write_device(offset + at, 1, byte)
        else:
            self.write_device(offset, size, value)

    def write_device(self, offset: int, size: int, value: int) -> bool:
        """Write to the device, even what is ours for the guest; tell whether it answered."""
        device = self._device
        if device is None:
            return False
        try:
            device.write(offset, size, value)
        except VmmError as error:
            self._lost(error)
            return False
        return True

    def detach(self) -> None:
        """Stop using the device, which has gone: its bits read as ones."""
        self._device = None
