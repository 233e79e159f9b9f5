"""The VM generation ID: 16 random bytes, other ones wherever a guest goes on from a snapshot.

A guest that is restored twice is two guests with one state of their random number generators. So it
is told: Linux reseeds its own, prints "crng reseeded due to virtual machine fork", and tells what
asked for it (register_random_vmfork_notifier: WireGuard forgets its session keys). A guest that
moves (live migration) is still one guest, and keeps its ID.

Sources: Microsoft's "Virtual Machine Generation ID" (2012); Linux's drivers/virt/vmgenid.c, which
finds it in a device tree since 6.10, and bindings rng/microsoft,vmgenid.yaml.

The bytes are in a page of their own, by a read-only memory slot: Linux copies them by pairs of
registers (LDP), for which a data abort has no syndrome that KVM could decode. Linux maps the page
as device memory. On a host without FEAT_S2FWB its loads go past the caches, and KVM cleans the page
to memory when it first maps it; nobody writes it after that, so nothing is owed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.arm64 import board, layout
from vmm.closeable import Closeable
from vmm.memory import Mapping

if TYPE_CHECKING:
    from vmm.arm64.gic import Gic
    from vmm.fdt import Node
    from vmm.kvm.slots import MemorySlot, MemorySlots

SIZE: Final = 16
"""Bytes of the identifier."""


class VmGenId(Closeable):
    """Own the page. It lasts from reset to reset, and begins with an ID that nobody has had."""

    def __init__(self) -> None:
        self._page = Mapping.anonymous(layout.VMGENID_SIZE)
        self._slots: MemorySlots | None = None
        self.restore(os.urandom(SIZE))

    def state(self) -> bytes:
        """Return the ID."""
        return bytes(self._page.view[:SIZE])

    def restore(self, identifier: bytes) -> None:
        """Have the ID *identifier*: the guest has moved here. Before it is mapped.

        Raises ValueError if it is not of `SIZE` bytes.
        """
        if len(identifier) != SIZE:
            raise ValueError(f"an ID of {len(identifier)} bytes, where {SIZE} are due")
        self._page.view[:SIZE] = identifier

    def tell(self, gic: Gic) -> None:
        """Tell the guest, whose state *gic* has, to look at its ID. Raises `KvmError`."""
        line = gic.line(layout.SPI_VMGENID)  # an edge
        line.set_level(True)
        line.set_level(False)

    def plug(self, slots: MemorySlots) -> None:
        """Map the page into a VM that does not run yet. Raises `KvmError`."""
        self._slots = slots
        address = self._page.region(layout.VMGENID).host_address
        slots.add(layout.VMGENID, layout.VMGENID_SIZE, address, lib.KVM_MEM_READONLY)

    def shown(self) -> list[tuple[str, MemorySlot]]:
        """Return name and memory slot, if it is mapped."""
        slot = None if self._slots is None else self._slots.find(layout.VMGENID)
        return [] if slot is None else [("VM generation ID", slot)]

    def unplug(self) -> None:
        """Forget the VM. Its vCPUs have stopped."""
        self._slots = None

    def node(self) -> Node:
        """Return the device tree node."""
        return board.vmgenid()

    def read(self, offset: int, size: int) -> int:
        """Return a part of the page. No load comes here: the page is memory."""
        return int.from_bytes(self._page.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignore a store, which exits: the page is read-only."""

    def close(self) -> None:
        """Unmap the page. No VM may map it. Idempotent."""
        self._page.close()
