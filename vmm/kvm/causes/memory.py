"""Causes of failed ioctls about memory: slots, dirty log, guest_memfd.

Sources: Linux 7.3, and Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno as e
from typing import Final

from vmm.cause import NO_MEMORY, Cause, Table, unaligned, zero
from vmm.kvm.causes import checks

_MAIN: Final = "virt/kvm/kvm_main.c"
_MMU: Final = "arch/arm64/kvm/mmu.c"
SET: Final = f"kvm_set_memory_region ({_MAIN})"
PREPARE: Final = f"kvm_arch_prepare_memory_region ({_MMU})"
FLAGS: Final = f"check_memory_region_flags ({_MAIN})"
"""The kernel's functions that refuse a memory slot."""

SLOT: Final[dict[int, tuple[Cause, ...]]] = {
    e.EINVAL: (
        Cause(
            "address or size is not a multiple of the host's page",
            "align them",
            SET,
            check=unaligned("guest_phys_addr", "memory_size", "userspace_addr"),
        ),
        Cause(
            "the slot's number is past the last one (KVM_CAP_NR_MEMSLOTS)",
            "use a lower one",
            SET,
            check=checks.slot_number_is_high,
        ),
        Cause("the range ends past the last address", "", SET, check=checks.slot_wraps),
        Cause(
            "a slot has fewer than 2^31 pages",
            "make several of it",
            SET,
            check=checks.slot_is_large,
        ),
        Cause(
            "the host address is tagged, or the kernel's",
            "remove the tag",
            SET,
            check=checks.host_address_is_tagged,
        ),
        Cause(
            "there is no slot of this number to delete",
            "size 0 deletes: give the slot's size",
            SET,
            check=zero("memory_size"),
        ),
        Cause(
            "this kernel does not know a flag",
            "leave it out; KVM_CHECK_EXTENSION tells which it has",
            FLAGS,
            check=checks.flags_are_unknown,
        ),
        Cause(
            "a live slot's size, host address or read-only flag was changed",
            "delete the slot first",
            SET,
        ),
        Cause(
            "the mapping is device memory that cannot be mapped so at stage 2 (cacheable without "
            "FEAT_S2FWB and CTR_EL0.DIC, or logged)",
            "`pyvmm map` and `pyvmm verify` tell what it is",
            PREPARE,
        ),
    ),
    e.EEXIST: (
        Cause(
            "another slot holds part of this guest physical range",
            "place it elsewhere, or delete that one",
            f"kvm_check_memslot_overlap ({_MAIN})",
        ),
    ),
    e.EFAULT: (
        Cause(
            "the range ends beyond the VM's IPA size",
            "place it lower, or create the VM with more bits",
            PREPARE,
        ),
    ),
    e.ENOMEM: (NO_MEMORY,),
    e.EPERM: (
        Cause(
            "the VM is protected (pKVM): its slots take no flags, nor change once it has run",
            "use a VM that is not",
            PREPARE,
        ),
    ),
}

CAUSES: Final[Table] = {
    **{
        (call, number): causes
        for call in ("KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2")
        for number, causes in SLOT.items()
    },
    ("KVM_SET_USER_MEMORY_REGION", e.ENOSPC): (
        Cause("every slot that KVM has for a VM is taken", "use fewer", certain=True),
    ),
    ("KVM_SET_USER_MEMORY_REGION2", e.ENOTTY): (
        Cause(
            "this kernel is older than KVM_CAP_USER_MEMORY2 (Linux 6.8)",
            "use KVM_SET_USER_MEMORY_REGION",
            certain=True,
        ),
    ),
    ("KVM_CREATE_GUEST_MEMFD", e.EINVAL): (
        Cause(
            "the size is not a multiple of the host's page",
            "align it",
            "kvm_gmem_create (virt/kvm/guest_memfd.c)",
            check=unaligned("size"),
        ),
        Cause(
            "the size is 0",
            "",
            "kvm_gmem_create (virt/kvm/guest_memfd.c)",
            check=zero("size"),
        ),
        Cause("this kernel does not know a flag", "", "kvm_gmem_create (virt/kvm/guest_memfd.c)"),
    ),
    ("KVM_GET_DIRTY_LOG", e.ENOENT): (
        Cause(
            "the slot is not there, or has no KVM_MEM_LOG_DIRTY_PAGES",
            "set the flag, which a live slot takes",
            f"kvm_get_dirty_log ({_MAIN})",
        ),
    ),
    ("KVM_GET_DIRTY_LOG", e.EINVAL): (
        Cause(
            "the slot's number is past the last one (KVM_CAP_NR_MEMSLOTS)",
            "use a lower one",
            f"kvm_get_dirty_log ({_MAIN})",
            check=checks.slot_number_is_high,
        ),
    ),
    ("KVM_GET_DIRTY_LOG", e.ENXIO): (
        Cause(
            "the VM has a dirty ring in place of bitmaps",
            "read the ring, or enable KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP",
            f"kvm_get_dirty_log ({_MAIN})",
        ),
    ),
}
