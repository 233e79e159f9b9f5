"""Configuration space: each bit is fixed, writable, or cleared by writing one.

0x000  type 0 header (PCI Local Bus Specification 3.0, 6.1), BARs at 0x10
0x040  capabilities, a linked list
0x100  extended capabilities (PCI Express only)
0x1000
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm._native import lib

if TYPE_CHECKING:
    from vmm.pci.capability import Capability

SIZE: Final[int] = lib.PCI_CFG_SPACE_EXP_SIZE
CONVENTIONAL_SIZE: Final[int] = lib.PCI_CFG_SPACE_SIZE
"""Capabilities end here; extended ones begin."""


class ConfigSpace:
    """The 4096 bytes of one function. Undefined bytes read as zero and ignore writes."""

    def __init__(self) -> None:
        self._bytes = bytearray(SIZE)
        self._initial = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clears = bytearray(SIZE)
        self._free: int = lib.PCI_STD_HEADER_SIZEOF
        self._last: int = lib.PCI_CAPABILITY_LIST

    def define(self, offset: int, value: bytes, writable: bytes = b"", clears: bytes = b"") -> None:
        """Set *value* at *offset*, now and after each reset.

        *writable* masks the bits that the guest can write, *clears* those that it clears by
        writing ones. Both may be shorter than *value*: the rest is fixed. Raises ValueError if
        it does not fit.
        """
        end = offset + len(value)
        if end > SIZE:
            raise ValueError(f"[{offset:#x}, {end:#x}) is beyond configuration space")
        self._bytes[offset:end] = self._initial[offset:end] = value
        self._writable[offset:end] = writable.ljust(len(value), b"\0")
        self._clears[offset:end] = clears.ljust(len(value), b"\0")

    def define_register(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        """Define *size* bytes at *offset* as `define` does, little-endian."""
        self.define(offset, value.to_bytes(size, "little"), writable.to_bytes(size, "little"))

    def add_capability(self, capability: Capability, at: int | None = None) -> int:
        """Append *capability* to the list; return its offset.

        *at* is a multiple of four from 0x40 on; None: after the others. Raises ValueError if it
        does not fit.
        """
        kind, body, writable, clears = capability
        offset = self._free if at is None else at
        end = offset + 2 + len(body)
        if offset % 4 or offset < lib.PCI_STD_HEADER_SIZEOF or end > CONVENTIONAL_SIZE:
            raise ValueError(f"a capability cannot be at [{offset:#x}, {end:#x})")
        none = bytes(2)
        self.define(offset, bytes([kind, 0]) + body, none + writable, none + clears)
        self._bytes[self._last] = self._initial[self._last] = offset
        self._last = offset + 1
        self._free = max(self._free, -(-end // 4) * 4)
        status = self.read(lib.PCI_STATUS, 2) | lib.PCI_STATUS_CAP_LIST
        self.set(lib.PCI_STATUS, 2, status)
        self._initial[lib.PCI_STATUS : lib.PCI_STATUS + 2] = status.to_bytes(2, "little")
        return offset

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write for the guest: writable bits only."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            mask = self._writable[at]
            kept = self._bytes[at] & ~mask | byte & mask
            self._bytes[at] = kept & ~(byte & self._clears[at])

    def set(self, offset: int, size: int, value: int) -> None:
        """Change *size* bytes on the function's behalf, writable or not."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def writable(self, offset: int, size: int) -> int:
        """Return the mask of what the guest can write in *size* bytes."""
        return int.from_bytes(self._writable[offset : offset + size], "little")

    def contents(self) -> bytes:
        """Return all bytes."""
        return bytes(self._bytes)

    def restore(self, contents: bytes) -> None:
        """Take over *contents*, which `contents` returned. Raises ValueError.

        The identity, which nothing changes, has to be this function's.
        """
        identity = slice(lib.PCI_VENDOR_ID, lib.PCI_COMMAND)
        if len(contents) != SIZE or contents[identity] != self._bytes[identity]:
            raise ValueError("the configuration space is that of another function")
        self._bytes[:] = contents

    def reset(self) -> None:
        """Go back to the values that were defined."""
        self._bytes[:] = self._initial
