"""Find out why KVM answers a memory slot with EINVAL: change one thing at a time on a scratch VM.

EINVAL has a dozen reasons, and KVM names none. What a scratch VM takes differs in one thing from
what it refuses, and that is the reason:

    the same slot                      -> the VM's own state (a live slot, a capability, pKVM)
    without one flag                   -> that flag
    with the Write-Back flag           -> the mapping is cacheable, and the kernel wants the flag
    ordinary memory in place of ours   -> the mapping; by halves, its first page that is refused
    fewer bytes                        -> the size

The scratch VM has no vCPU, and each slot is deleted at once: nothing is ever accessed.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm.cause import Cause
from vmm.coherence import vma
from vmm.errors import HostError
from vmm.kvm.causes.memory import FLAGS, PREPARE, SET
from vmm.kvm.slots import MemorySlot, takes_slot
from vmm.kvm.vm import MemFlag
from vmm.memory import Mapping

if TYPE_CHECKING:
    from vmm.coherence.explain import RequestedSlot
    from vmm.kvm.system import System
    from vmm.kvm.vm import Vm


def bisect(system: System, slot: RequestedSlot) -> Cause | None:
    """Return why KVM refuses *slot* with EINVAL; None: no single change makes it take it.

    Raises `KvmError` if there can be no scratch VM, or for another errno.
    """
    with system.create_vm(slot.base + slot.size) as vm:
        if _takes(vm, slot):
            return Cause(
                "a new VM takes the same slot, so it is this VM's state: a live slot of this "
                "number, a capability that is enabled, or protection (pKVM)",
                "delete the slot first",
                SET,
                certain=True,
            )
        for flag in (1 << bit for bit in range(32) if slot.flags >> bit & 1):
            if _takes(vm, slot, flags=slot.flags & ~flag):
                name = MemFlag(flag).name or hex(flag)
                return Cause(
                    f"a new VM takes the slot without {name}: KVM does not know the flag, or "
                    "not for this memory",
                    "leave it out",
                    FLAGS,
                    certain=True,
                )
        if _takes(vm, slot, flags=slot.flags | MemFlag.WRITE_BACK):
            return Cause(
                "a new VM takes the slot with the Write-Back flag: the mapping is cacheable, and "
                "this kernel wants the flag for that",
                "set it (--uapi rfc, cache=auto)",
                PREPARE,
                certain=True,
            )
        # A HostError: there is no room for as much.
        with suppress(HostError), Mapping.anonymous(slot.size) as plain:
            address = plain.region(slot.base).host_address
            if _takes(vm, slot, host_address=address):
                return _mapping_is_why(vm, slot)
        if _takes(vm, slot, size=mmap.PAGESIZE):
            return Cause(
                f"a new VM takes one page there, but not {slot.size:#x} bytes",
                "make several slots of it",
                SET,
                certain=True,
            )
    return None


def _mapping_is_why(vm: Vm, slot: RequestedSlot) -> Cause:
    """Return the cause with the first page of *slot*'s memory that KVM refuses.

    KVM looks at the VMAs from the lowest on, so what it takes of the front it takes of less.
    """
    page = mmap.PAGESIZE
    taken, refused = 0, slot.size // page
    while refused - taken > 1:
        middle = (taken + refused) // 2
        if _takes(vm, slot, size=middle * page):
            taken = middle
        else:
            refused = middle
    offset = taken * page
    where = vma.find(slot.host_address + offset)
    at = f" from offset {offset:#x} on" if offset else ""
    return Cause(
        f"a new VM takes the slot with ordinary memory in it: the mapping is why{at} "
        f"({where or 'no VMA'})",
        "`pyvmm verify` tells its type",
        PREPARE,
        certain=True,
    )


def _takes(
    vm: Vm,
    slot: RequestedSlot,
    *,
    flags: int | None = None,
    size: int | None = None,
    host_address: int | None = None,
) -> bool:
    """Tell whether scratch *vm* takes *slot*, with one thing changed. It is deleted again."""
    asked = MemorySlot(
        0,
        slot.flags if flags is None else flags,
        slot.base,
        slot.size if size is None else size,
        slot.host_address if host_address is None else host_address,
    )
    taken = takes_slot(vm, asked)
    if taken:
        vm.set_user_memory_region(0, 0, slot.base, 0, 0)
    return taken
