"""MSI: a capability with one message for up to 32 vectors (PCI Local Bus 3.0, 6.8.1).

A vector's number replaces the low bits of the data. The device's own registers have the host's
messages, which VFIO writes; these are the guest's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.pci.msix import Message

if TYPE_CHECKING:
    from vmm.passthrough.config_space import PassthroughConfigSpace
    from vmm.pci.msix import MsiSink


class Msi:
    """The capability at offset *at* of *config*; *sink* delivers. Calls come one at a time."""

    def __init__(self, config: PassthroughConfigSpace, at: int, sink: MsiSink) -> None:
        self._config = config
        self._sink = sink
        flags = config.read(at + lib.PCI_MSI_FLAGS, 2)
        self.vectors = 1 << min((flags & lib.PCI_MSI_FLAGS_QMASK) >> 1, 5)
        self._sent: dict[int, Message] = {}
        self._flags = at + int(lib.PCI_MSI_FLAGS)
        self._low = at + int(lib.PCI_MSI_ADDRESS_LO)
        wide = flags & lib.PCI_MSI_FLAGS_64BIT
        self._high = at + int(lib.PCI_MSI_ADDRESS_HI) if wide else None
        self._data = at + int(lib.PCI_MSI_DATA_64 if wide else lib.PCI_MSI_DATA_32)
        self._masks: int | None = None
        writable = lib.PCI_MSI_FLAGS_ENABLE | lib.PCI_MSI_FLAGS_QSIZE
        config.define_register(self._flags, 2, flags & ~writable, writable)
        config.define_register(self._low, 4, 0, 0xFFFF_FFFC)
        if self._high is not None:
            config.define_register(self._high, 4, 0, 0xFFFF_FFFF)
        config.define_register(self._data, 2, 0, 0xFFFF)
        if flags & lib.PCI_MSI_FLAGS_MASKBIT:
            self._masks = at + int(lib.PCI_MSI_MASK_64 if wide else lib.PCI_MSI_MASK_32)
            config.define_register(self._masks, 4, 0, (1 << self.vectors) - 1)
            self._pending = at + int(lib.PCI_MSI_PENDING_64 if wide else lib.PCI_MSI_PENDING_32)
            config.define_register(self._pending, 4, 0, 0)

    @property
    def enabled(self) -> bool:
        """Whether MSI is enabled: the function then has no INTx."""
        return bool(self._config.read(self._flags, 2) & lib.PCI_MSI_FLAGS_ENABLE)

    def refresh(self) -> None:
        """Update the pending bits, before they are read."""
        if self._masks is not None:
            masked = self._config.read(self._masks, 4) if self.enabled else 0
            vectors = (vector for vector in range(self.vectors) if masked >> vector & 1)
            bits = sum(1 << vector for vector in vectors if self._sink.pending(vector))
            self._config.set(self._pending, 4, bits)

    def update(self) -> None:
        """Tell the sink which messages changed, after the guest wrote."""
        wanted = self._wanted()
        changed: dict[int, Message | None] = {
            vector: wanted.get(vector)
            for vector in range(self.vectors)
            if wanted.get(vector) != self._sent.get(vector)
        }
        if changed:
            self._sent = wanted
            self._sink.update(changed)

    def _wanted(self) -> dict[int, Message]:
        """Return the messages of the vectors that have one."""
        read = self._config.read
        flags = read(self._flags, 2)
        if not flags & lib.PCI_MSI_FLAGS_ENABLE:
            return {}
        count = min(1 << ((flags & lib.PCI_MSI_FLAGS_QSIZE) >> 4), self.vectors)
        masked = 0 if self._masks is None else read(self._masks, 4)
        address = read(self._low, 4)
        if self._high is not None:
            address |= read(self._high, 4) << 32
        data = read(self._data, 2) & ~(count - 1)
        return {
            vector: Message(address, data | vector)
            for vector in range(count)
            if not masked >> vector & 1
        }
