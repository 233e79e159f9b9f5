"""Files on file systems with DAX: cacheable memory that older kernels make Device at stage 2.

A mapping of such a file has pages of persistent memory (ZONE_DEVICE). The kernel manages them, and
maps them cacheable at stage 1. Up to Linux 6.16 KVM takes for a device's all that is not System
RAM, whatever the VMA says (arch/arm64/kvm/mmu.c, kvm_is_device_pfn: !pfn_is_map_memory): stage 2 is
Device, and no error tells. Later kernels ask that only of VM_PFNMAP and VM_MIXEDMAP, which a
mapping of a DAX file is not. So a file that is on DAX, or of which the kernel does not tell, is
given to a guest only if a scratch guest has proved it cacheable, by a page that has blocks. What
has none, a hole or a part that is allocated and was never written, is the kernel's page of zeroes,
which is System RAM (fs/dax.c, dax_load_hole). SEEK_DATA does not tell these apart from data.

A device's DAX window (virtio-fs, fs/fuse/dax.c) is VM_MIXEDMAP; no kernel of the lab has one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.coherence.prove import prove
from vmm.coherence.verdict import CACHEABLE, MemoryType
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm.coherence.verdict import Verdict
    from vmm.kvm.system import System
    from vmm.memory import Region

OTHER: Final = "use Linux 6.17 or later, or a file on a file system that is mounted without dax"

# --- blocks ---------------------------------------------------------------------------------------

FIEMAP: Final = 3 << 30 | 32 << 16 | ord("f") << 8 | 11
"""FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap): include/uapi/linux/fiemap.h."""
REQUEST: Final = struct.Struct("=QQIIII")
"""start, length, flags, extents mapped, extents that there is room for, reserved."""
EXTENT: Final = struct.Struct("=QQQ16xI12x")
"""logical, physical, length, all in bytes, and flags."""
AT_ONCE: Final = 64
POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE (Linux 5.14): fault as a store would, which gives a page blocks."""
SYNC: Final = 1
LAST, MERGED, SHARED = 0x1, 0x1000, 0x2000
"""Flags of extents that have written blocks of their own. Each other one says less."""

Extent = tuple[int, int, int]
"""An extent's offset and length in the file, in bytes, and its flags."""


def extents(fd: int) -> Iterator[Extent]:
    """Yield the extents of the file *fd*. Raises OSError: not every file system can tell."""
    start, room = 0, bytes(AT_ONCE * EXTENT.size)
    while True:
        request = bytearray(REQUEST.pack(start, (1 << 64) - 1 - start, SYNC, 0, AT_ONCE, 0) + room)
        fcntl.ioctl(fd, FIEMAP, request)
        mapped = REQUEST.unpack_from(request)[3]
        if not mapped:
            return
        for number in range(mapped):
            at = REQUEST.size + number * EXTENT.size
            logical, _, length, flags = EXTENT.unpack_from(request, at)
            yield logical, length, flags
            if flags & LAST:
                return
            start = logical + length


def page_with_blocks(found: Iterable[Extent], size: int) -> int | None:
    """Return the offset of the first whole page of *found* that has written blocks. Pure.

    *size* is that of the part that is looked at, in bytes.
    """
    for logical, length, flags in found:
        page = logical + -logical % mmap.PAGESIZE
        written = not flags & ~(LAST | MERGED | SHARED)
        if written and page + mmap.PAGESIZE <= min(logical + length, size):
            return page
    return None


def _fault(host_address: int) -> None:
    error = lib.pyvmm_madvise(host_address, mmap.PAGESIZE, POPULATE_WRITE)
    if error:
        raise OSError(-error, os.strerror(-error))


def _prepare(option: str, fd: int, region: Region) -> int:
    """Return the offset of a page that has blocks; see `check`."""
    try:
        if region.read_only:
            page = page_with_blocks(extents(fd), region.size)
        else:
            page = 0
            _fault(region.host_address)
    except OSError as error:
        why = f"no page of it can be proved to have blocks: {error.strerror}"
        raise HostError(f"{option}: its file system uses DAX, and {why}", OTHER) from error
    if page is None:
        raise HostError(
            f"{option}: its file system uses DAX, and no page of it was ever written, so nothing "
            "shows how this kernel maps it at stage 2",
            "write to it, or leave out ,ro",
        )
    return page


# --- proof ----------------------------------------------------------------------------------------


def check(option: str, system: System, region: Region, fd: int) -> None:
    """Prove that *region*, of the DAX file *fd*, is cacheable at stage 2; *option* is for errors.

    A scratch guest reads 8 bytes of a page that has blocks, and executes what it finds there; it
    can write nothing. The page is one that was written; unless the region is read-only, it is the
    first one, which gets blocks if it has none, and keeps its bytes. Raises `HostError` if the
    memory is not cacheable, if there is no such page, or if the kernel refuses the slot.
    """
    page = _prepare(option, fd, region)
    judge(option, prove(system, region.host_address + page, mmap.PAGESIZE))


def judge(option: str, verdict: Verdict) -> None:
    """Raise `HostError` unless *verdict* is that of cacheable memory."""
    if verdict.memory_type in CACHEABLE:
        return
    dax = f"{option}: its file system uses DAX, and"
    if verdict.memory_type is MemoryType.UNDECIDABLE:
        raise HostError(
            f"{dax} it cannot be told how this kernel maps such memory at stage 2: {verdict}", OTHER
        )
    raise HostError(
        f"{dax} this kernel maps such memory, which the host caches, otherwise at stage 2: "
        f"{verdict}",
        OTHER,
    )
