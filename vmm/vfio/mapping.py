"""A mapping of part of a device's region."""

from __future__ import annotations

import mmap
from functools import partial
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.closeable import Closeable
from vmm.vfio.fd import VfioError

if TYPE_CHECKING:
    from vmm.address_range import AddressRange
    from vmm.vfio.fd import VfioFd

LARGEST_BLOCK: Final = 1 << 30
"""Bytes; PFNMAP has no larger (PUD) blocks with 4 KiB pages, and 512 MiB (PMD) is the largest
with 64 KiB pages."""


def alignment(size: int) -> int:
    """Return what to align the host address of *size* bytes to, in bytes."""
    return max(mmap.PAGESIZE, min(LARGEST_BLOCK, 1 << size.bit_length() - 1))


class RegionMapping(Closeable):
    """Own one mapping of device memory: `host_address` for memory slots, `view` for Python.

    An access faults (SIGBUS) while the device's memory is off. Remove the memory slot first,
    then close.
    """

    def __init__(
        self, device: VfioFd, what: str, file_offset: int, area: AddressRange, *, writable: bool
    ) -> None:
        """Map *area* of the region that starts at *file_offset*. Raises `VfioError`."""
        self.what = what
        self.area = area
        """Where it is in the region."""
        self.size = area.size
        address = ffi.new("uintptr_t *")
        error = lib.pyvmm_map_aligned(
            device.fileno(),
            file_offset + area.base,
            area.size,
            writable,
            alignment(area.size),
            area.base,
            address,
        )
        if error:
            shown: dict[str, object] = {"offset": area.base, "size": area.size}
            raise VfioError(what, "mmap", -error, shown)
        self.host_address = int(address[0])
        """Its host virtual address."""
        self._mapped = [self.host_address]
        # Views keep this alive, so no view can outlive the mapping.
        memory = ffi.gc(
            ffi.cast("uint8_t *", self.host_address), partial(_unmap, self._mapped, self.size)
        )
        self.view = memoryview(ffi.buffer(memory, self.size))
        """Its bytes. For accesses of a given width or order use `VfioRegion.read`."""
        if not writable:
            self.view = self.view.toreadonly()

    @property
    def closed(self) -> bool:
        """Whether it is unmapped."""
        return not self._mapped

    def close(self) -> None:
        """Unmap. Its memory slot must be gone. Idempotent.

        Raises BufferError if a slice of `view` exists; the last one to go unmaps.
        """
        self.view.release()
        if self._mapped:
            raise BufferError(f"{self.what}: a view of the mapping is in use")


def _unmap(mapped: list[int], size: int, _pointer: object) -> None:
    for address in mapped:
        lib.pyvmm_unmap(address, size)
    mapped.clear()
