"""Files on file systems with DAX: cacheable memory that older kernels make Device at stage 2.

A mapping of such a file has pages of persistent memory (ZONE_DEVICE). The kernel manages them, and
maps them cacheable at stage 1. Up to Linux 6.16 KVM takes for a device's all that is not System
RAM, whatever the VMA says (arch/arm64/kvm/mmu.c, kvm_is_device_pfn: !pfn_is_map_memory): stage 2 is
Device, and no error tells. Later kernels ask that only of VM_PFNMAP and VM_MIXEDMAP, which a
mapping of a DAX file is not. So a DAX file is given to a guest only if a scratch guest has proved
it cacheable, by a page that has blocks: a hole is the kernel's page of zeroes, which is System RAM,
until it is written (fs/dax.c, dax_load_hole).

A device's DAX window (virtio-fs, fs/fuse/dax.c) is VM_MIXEDMAP; no kernel of the lab has one.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from vmm.coherence.prove import prove
from vmm.coherence.verdict import CACHEABLE
from vmm.errors import HostError

if TYPE_CHECKING:
    from vmm.coherence.verdict import Verdict
    from vmm.kvm.system import System
    from vmm.memory import Region


def check(option: str, system: System, region: Region, offset: int) -> None:
    """Prove that *region*, of a DAX file, is cacheable at stage 2; *option* names it in errors.

    A scratch guest reads 8 bytes of the page at *offset*, which has blocks, and executes what it
    finds there; nothing is written. Raises `HostError` if it is not, or if the kernel refuses the
    slot.
    """
    judge(option, prove(system, region.host_address + offset, mmap.PAGESIZE))


def judge(option: str, verdict: Verdict) -> None:
    """Raise `HostError` unless *verdict* is that of cacheable memory."""
    if verdict.memory_type not in CACHEABLE:
        raise HostError(
            f"{option}: its file system uses DAX, and this kernel maps such memory, which the host "
            f"caches, otherwise at stage 2: {verdict}",
            "use Linux 6.17 or later, or a file on a file system that is mounted without dax",
        )
