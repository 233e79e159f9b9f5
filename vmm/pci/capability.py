"""PCI capabilities as values, for `ConfigSpace.add_capability`."""

from __future__ import annotations

from typing import NamedTuple

from vmm._native import lib

EXPRESS_SIZE = 60
"""Bytes of the PCI Express capability, version 2 (PCI Express Base Specification 4.0, 7.5.3)."""


class Capability(NamedTuple):
    """Capability *kind* (PCI_CAP_ID_*): the bytes after its ID and link.

    writable  mask of the bits that the guest can write
    clears    mask of the bits that the guest clears by writing ones
    """

    kind: int
    body: bytes
    writable: bytes = b""
    clears: bytes = b""


class Body:
    """Assembles a capability's bytes, at the offsets that the specifications use."""

    def __init__(self, size: int) -> None:
        self.value, self.writable, self.clears = bytearray(size), bytearray(size), bytearray(size)

    def put(self, offset: int, size: int, value: int, writable: int = 0, clears: int = 0) -> None:
        """Set a register of *size* bytes at *offset*, which counts from the ID byte."""
        pairs = ((self.value, value), (self.writable, writable), (self.clears, clears))
        for into, number in pairs:
            into[offset : offset + size] = number.to_bytes(size, "little")

    def capability(self, kind: int) -> Capability:
        """Return the result."""
        return Capability(
            kind, bytes(self.value[2:]), bytes(self.writable[2:]), bytes(self.clears[2:])
        )


def power_management() -> Capability:
    """Return power management: D0 and D3hot without loss of state, no PME (PCI PM 1.2, 3.2)."""
    body = Body(lib.PCI_PM_SIZEOF)
    body.put(lib.PCI_PM_PMC, 2, 3)  # the specification's version 1.2
    state = lib.PCI_PM_CTRL_STATE_MASK
    body.put(lib.PCI_PM_CTRL, 2, lib.PCI_PM_CTRL_NO_SOFT_RESET, state)
    return body.capability(lib.PCI_CAP_ID_PM)


def express() -> Capability:
    """Return PCI Express: a root complex integrated endpoint with function-level reset."""
    body = Body(EXPRESS_SIZE)
    body.put(lib.PCI_EXP_FLAGS, 2, 2 | lib.PCI_EXP_TYPE_RC_END << 4)
    body.put(lib.PCI_EXP_DEVCAP, 4, lib.PCI_EXP_DEVCAP_RBER | lib.PCI_EXP_DEVCAP_FLR)
    # Device Control has no effect here, so it reads back what was written. The errors in Device
    # Status do not happen.
    reset = lib.PCI_EXP_DEVCTL_BCR_FLR
    body.put(lib.PCI_EXP_DEVCTL, 4, 0, 0xFFFF & ~reset)
    return body.capability(lib.PCI_CAP_ID_EXP)


def msix(vectors: int, table: tuple[int, int], pba: tuple[int, int]) -> Capability:
    """Return MSI-X with *vectors* vectors; *table* and *pba* are (BAR, offset)."""
    body = Body(12)
    control = lib.PCI_MSIX_FLAGS_ENABLE | lib.PCI_MSIX_FLAGS_MASKALL
    body.put(lib.PCI_MSIX_FLAGS, 2, vectors - 1, control)
    body.put(lib.PCI_MSIX_TABLE, 4, table[1] | table[0])
    body.put(lib.PCI_MSIX_PBA, 4, pba[1] | pba[0])
    return body.capability(lib.PCI_CAP_ID_MSIX)


def vendor(data: bytes, writable: bytes = b"") -> Capability:
    """Return a vendor-specific capability with *data*, of which the guest can write *writable*."""
    return Capability(
        lib.PCI_CAP_ID_VNDR, bytes([len(data) + 3]) + data, b"\0" + writable if writable else b""
    )
