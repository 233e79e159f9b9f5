"""KVM's own counters of a VM or vCPU: its binary statistics (api.rst, KVM_GET_STATS_FD).

    header | id | descriptors: name, type, where | data

Which counters there are depends on the architecture and the kernel: they describe themselves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.fd import Fd
from vmm.kvm.ioctls import Ioctl

if TYPE_CHECKING:
    from vmm.kvm.fd import KvmFd

WORD: Final = 8
HEADER: Final = ffi.sizeof("struct kvm_stats_header")
DESCRIPTOR: Final = ffi.sizeof("struct kvm_stats_desc")
PLAIN: Final = (lib.KVM_STATS_TYPE_CUMULATIVE, lib.KVM_STATS_TYPE_INSTANT, lib.KVM_STATS_TYPE_PEAK)
"""Types that are numbers; the others are histograms."""


class Stats(Fd):
    """The counters of *owner*, a VM or vCPU, which may be closed before this.

    Raises `KvmError` if the kernel is older than 5.14, and OSError.
    """

    def __init__(self, owner: KvmFd) -> None:
        super().__init__(owner.ioctl(Ioctl.KVM_GET_STATS_FD))
        try:
            self._places = dict(self._describe())
        except BaseException:
            self.close()
            raise

    def _describe(self) -> list[tuple[str, int]]:
        """Return the name of each number, and its offset in the file in bytes."""
        header = ffi.from_buffer("struct kvm_stats_header *", self._read(HEADER, 0))
        found = []
        size = DESCRIPTOR + header.name_size
        for index in range(header.num_desc):
            data = self._read(size, header.desc_offset + index * size)
            entry = ffi.from_buffer("struct kvm_stats_desc *", data)
            if entry.flags & lib.KVM_STATS_TYPE_MASK in PLAIN:
                name = data[DESCRIPTOR:].split(b"\0", 1)[0].decode()
                found.append((name, header.data_offset + entry.offset))
        return found

    def read(self) -> dict[str, int]:
        """Return each counter's present value by the kernel's name, such as ``exits``."""
        if not self._places:
            return {}
        first, last = min(self._places.values()), max(self._places.values())
        data = self._read(last + WORD - first, first)
        return {
            name: int.from_bytes(data[at - first : at - first + WORD], "little")
            for name, at in self._places.items()
        }

    def _read(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)
