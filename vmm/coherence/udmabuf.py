"""Cacheable PFNMAP memory that any host can make: a udmabuf, without any device.

The udmabuf driver maps pages of a memfd as VM_PFNMAP, with the attributes of ordinary memory
(drivers/dma-buf/udmabuf.c, mmap_udmabuf). For a memory slot KVM looks at exactly these two, so its
answer to such a slot is its answer to a cacheable BAR: EINVAL without FWB and DIC, or without the
proposal's flag. Its answer to a fault is not: the pages are memory that the kernel manages, so KVM
maps them as such (arch/arm64/kvm/mmu.c, pfn_is_map_memory).

So it shows what a kernel's memory-slot flag bit 3 means, on a host without any cacheable device:
with the proposal, such a slot is refused without the flag and taken with it.

Needs /dev/udmabuf (CONFIG_UDMABUF, as in Debian's 6.12 and 7.3), which is root's.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.closeable import Closeable
from vmm.coherence import vma
from vmm.kvm.slots import MemorySlot, takes_slot
from vmm.kvm.vm import MemFlag
from vmm.memory import Region

if TYPE_CHECKING:
    from vmm.kvm.vm import Vm

NODE: Final = Path("/dev/udmabuf")
CREATE: Final = 1 << 30 | 24 << 16 | ord("u") << 8 | 0x42
"""UDMABUF_CREATE, _IOW('u', 0x42, struct udmabuf_create): include/uapi/linux/udmabuf.h."""
CLOEXEC: Final = 1


class Udmabuf(Closeable):
    """Own a mapping of *size* bytes, a multiple of the page size. Raises OSError."""

    def __init__(self, size: int) -> None:
        self._owned = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            mapping = self._map(size)
            self._owned.callback(mapping.close)
            self.view = self._owned.enter_context(memoryview(mapping))
            self.host_address = Region(0, self.view).host_address
            self.size = size
            undo.pop_all()

    @staticmethod
    def _map(size: int) -> mmap.mmap:
        memfd = os.memfd_create("udmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memfd, size)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            node = os.open(NODE, os.O_RDWR | os.O_CLOEXEC)
            try:
                request = bytearray(struct.pack("IIQQ", memfd, CLOEXEC, 0, size))
                buffer = fcntl.ioctl(node, CREATE, request)
            finally:
                os.close(node)
        finally:
            os.close(memfd)
        try:
            return mmap.mmap(buffer, size, mmap.MAP_SHARED)
        finally:
            os.close(buffer)

    def close(self) -> None:
        """Unmap it. Memory slots made of it must be gone. Idempotent."""
        self._owned.close()


@dataclass(frozen=True)
class SlotAnswers:
    """Whether a slot of cacheable PFNMAP memory is taken, without flag bit 3 and with it."""

    plain: bool
    flagged: bool

    @property
    def is_the_proposal(self) -> bool:
        """Whether bit 3 is shown to be the proposal's flag."""
        return self.flagged and not self.plain

    def __str__(self) -> str:
        plain, flagged = ("taken" if taken else "refused" for taken in (self.plain, self.flagged))
        return f"a slot of a udmabuf is {plain} without flag bit 3, and {flagged} with it"


def ask(vm: Vm) -> SlotAnswers | None:
    """Try a udmabuf as a slot of *vm*, a scratch VM without slots; None: there is none.

    A mapping of it that is not VM_PFNMAP, as of another kernel's driver, shows nothing: None, too.

    Raises `KvmError` for errors other than EINVAL.
    """
    try:
        sample = Udmabuf(mmap.PAGESIZE)
    except OSError:  # no such node, not root's, or no memory
        return None
    with sample:
        behind = vma.find(sample.host_address)
        if behind is None or not behind.is_pfnmap:
            return None
        return SlotAnswers(_takes(vm, sample, 0), _takes(vm, sample, int(MemFlag.WRITE_BACK)))


def _takes(vm: Vm, sample: Udmabuf, flags: int) -> bool:
    taken = takes_slot(vm, MemorySlot(0, flags, 0, sample.size, sample.host_address))
    if taken:
        vm.set_user_memory_region(0, 0, 0, 0, 0)
    return taken
