"""Read, write and map a device's regions: BARs, ROM and configuration space."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm._native import lib
from vmm.address_range import AddressRange
from vmm.errors import UserError
from vmm.vfio.fd import VfioError
from vmm.vfio.mapping import RegionMapping
from vmm.vfio.region_info import CONFIG

if TYPE_CHECKING:
    from vmm.vfio.fd import VfioFd
    from vmm.vfio.region_info import RegionInfo


class VfioRegion:
    """One region of an open device.

    `read` and `write` make it a bus device for trapped accesses; `vmm.vfio.trap` has one that
    outlives the device.
    """

    def __init__(self, bdf: str, info: RegionInfo, device: VfioFd) -> None:
        self.bdf = bdf
        self.info = info
        self._device = device
        self._mappings: list[RegionMapping] = []

    def __str__(self) -> str:
        return f"{self.bdf} region {self.info.index} ({self.info.name})"

    @property
    def index(self) -> int:
        """VFIO's number for it; 0 to 5 are the BARs."""
        return self.info.index

    @property
    def size(self) -> int:
        """Bytes."""
        return self.info.size

    # --- by system call -----------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Return *size* bytes (1, 2, 4 or 8) at *offset*, as one access of the device's.

        Raises `VfioError` if the device does not answer.
        """
        return int.from_bytes(self.read_bytes(offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write *size* bytes (1, 2, 4 or 8) at *offset*, as one access. Raises `VfioError`."""
        self.write_bytes(offset, value.to_bytes(size, "little"))

    def read_bytes(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*. Raises `UserError` or `VfioError`."""
        self._check(offset, size)
        data = b""
        while len(data) < size:
            at = offset + len(data)
            try:
                got = os.pread(self._device.fileno(), size - len(data), self.info.offset + at)
            except OSError as error:
                raise self._failed("pread", error.errno or 0, at, size) from error
            if not got:
                raise self._failed("pread", errno.EIO, at, size)
            data += got
        return data

    def write_bytes(self, offset: int, data: bytes) -> None:
        """Write *data* at *offset*. Raises `UserError` or `VfioError`."""
        self._check(offset, len(data))
        while data:
            try:
                done = os.pwrite(self._device.fileno(), data, self.info.offset + offset)
            except OSError as error:
                raise self._failed("pwrite", error.errno or 0, offset, len(data)) from error
            if not done:
                raise self._failed("pwrite", errno.EIO, offset, len(data))
            offset, data = offset + done, data[done:]

    def _failed(self, call: str, number: int, offset: int, size: int) -> VfioError:
        return VfioError(str(self), call, number, {"offset": offset, "size": size})

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise UserError(f"{self} has {self.size:#x} bytes, not {size:#x} at {offset:#x}")

    # --- mapped -------------------------------------------------------------------------------

    def map(self, offset: int = 0, size: int | None = None) -> RegionMapping:
        """Map *size* bytes at *offset*; without *size*, as many as can be mapped.

        The host address agrees with the offset modulo the largest power of two that fits in the
        size, at most 1 GiB, so that the kernel can map blocks of 2 MiB and 1 GiB (of 32 or
        512 MiB with larger pages). The device's memory must be on: see `VfioDevice.enable_memory`.
        The mapping is closed with the device at the latest. Raises `UserError` or `VfioError`.
        """
        area = self.check_map(offset, size)
        self._mappings = [mapping for mapping in self._mappings if not mapping.closed]
        mapping = RegionMapping(
            self._device, str(self), self.info.offset, area, writable=self.info.writable
        )
        self._mappings.append(mapping)
        return mapping

    def check_map(self, offset: int = 0, size: int | None = None) -> AddressRange:
        """Return what `map` would map. Raises `UserError`, which lists what can be mapped."""
        page = mmap.PAGESIZE
        if not self.info.mappable:
            raise UserError(f"{self} cannot be mapped", self._why_not())
        possible = f"what can be mapped of it is {', '.join(map(str, self.info.areas))}"
        if offset % page or (size or 0) % page:
            raise UserError(
                f"{self}: offset {offset:#x} or size {size or 0:#x} is not a multiple of this "
                f"host's page, {page:#x}",
                possible,
            )
        if size is not None and size <= 0:
            raise UserError(f"{self}: a mapping of {size} bytes makes no sense", possible)
        for area in self.info.areas:
            if area.base <= offset < area.end:
                if size is None:
                    return AddressRange(offset, area.end - offset)
                if offset + size <= area.end:
                    return AddressRange(offset, size)
        wanted = AddressRange(offset, size) if size else f"from {offset:#x}"
        raise UserError(f"{self}: {wanted} cannot be mapped", possible)

    def _why_not(self) -> str:
        if not self.size:
            return "the device has no such region"
        if self.index == CONFIG:
            return "configuration space can only be read and written"
        if self.index <= int(lib.VFIO_PCI_BAR5_REGION_INDEX):
            return (
                "it is I/O ports, shares a host page with something else, or its driver wants "
                "each access; trap accesses (read and write) instead"
            )
        return "VFIO reads and writes it only; trap accesses instead"

    def close(self) -> None:
        """Unmap all of its mappings. Idempotent."""
        with ExitStack() as owned:
            while self._mappings:
                owned.callback(self._mappings.pop().close)
