"""Capabilities: what a function can do, as values for `ConfigSpace.add_capability`."""

from __future__ import annotations

from typing import NamedTuple

from vmm._native import lib

EXPRESS_SIZE = 60
"""Bytes of the PCI Express capability, version 2 (PCI Express Base Specification 4.0, 7.5.3)."""


class Capability(NamedTuple):
    """Capability *kind* (PCI_CAP_ID_*): what comes after the two bytes of kind and link.

    writable  ones for what the guest can write; clears: ones for what it clears by writing ones
    """

    kind: int
    body: bytes
    writable: bytes = b""
    clears: bytes = b""


class Body:
    """A capability's bytes being put together, at offsets as the specifications have them."""

    def __init__(self, size: int) -> None:
        self.value, self.writable, self.clears = bytearray(size), bytearray(size), bytearray(size)

    def put(self, offset: int, size: int, value: int, writable: int = 0, clears: int = 0) -> None:
        """Have a register of *size* bytes at *offset*, which counts kind and link."""
        pairs = ((self.value, value), (self.writable, writable), (self.clears, clears))
        for into, number in pairs:
            into[offset : offset + size] = number.to_bytes(size, "little")

    def capability(self, kind: int) -> Capability:
        """Return it as a value."""
        return Capability(
            kind, bytes(self.value[2:]), bytes(self.writable[2:]), bytes(self.clears[2:])
        )


def power_management() -> Capability:
    """States D0 and D3hot, nothing lost between them, no wake-up (PCI PM 1.2, 3.2)."""
    body = Body(lib.PCI_PM_SIZEOF)
    body.put(lib.PCI_PM_PMC, 2, 3)  # the specification's version 1.2
    state = lib.PCI_PM_CTRL_STATE_MASK
    body.put(lib.PCI_PM_CTRL, 2, lib.PCI_PM_CTRL_NO_SOFT_RESET, state)
    return body.capability(lib.PCI_CAP_ID_PM)


def express() -> Capability:
    """Be a root complex integrated endpoint that can be reset as a function (FLR)."""
    body = Body(EXPRESS_SIZE)
    body.put(lib.PCI_EXP_FLAGS, 2, 2 | lib.PCI_EXP_TYPE_RC_END << 4)
    body.put(lib.PCI_EXP_DEVCAP, 4, lib.PCI_EXP_DEVCAP_RBER | lib.PCI_EXP_DEVCAP_FLR)
    # Control and status; no traffic of ours is shaped by what the guest writes here, so it reads
    # back. The errors that status can tell of do not happen.
    reset = lib.PCI_EXP_DEVCTL_BCR_FLR
    body.put(lib.PCI_EXP_DEVCTL, 4, 0, 0xFFFF & ~reset)
    return body.capability(lib.PCI_CAP_ID_EXP)


def msix(vectors: int, table: tuple[int, int], pba: tuple[int, int]) -> Capability:
    """MSI-X with *vectors* vectors; *table* and *pba* are (BAR, offset)."""
    body = Body(12)
    control = lib.PCI_MSIX_FLAGS_ENABLE | lib.PCI_MSIX_FLAGS_MASKALL
    body.put(lib.PCI_MSIX_FLAGS, 2, vectors - 1, control)
    body.put(lib.PCI_MSIX_TABLE, 4, table[1] | table[0])
    body.put(lib.PCI_MSIX_PBA, 4, pba[1] | pba[0])
    return body.capability(lib.PCI_CAP_ID_MSIX)


def vendor(data: bytes, writable: bytes = b"") -> Capability:
    """Vendor-specific *data*, and which bits of it are the guest's."""
    return Capability(
        lib.PCI_CAP_ID_VNDR, bytes([len(data) + 3]) + data, b"\0" + writable if writable else b""
    )
