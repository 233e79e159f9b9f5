"""Likely causes of a failed ioctl: KVM answers with an errno and nothing else.

Each entry is what the kernel's source says about the errno, most likely cause first. `GENERAL` has
the errnos that mean the same for all ioctls. Sources: virt/kvm/kvm_main.c, arch/arm64/kvm/,
Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno as e
from typing import TYPE_CHECKING, Final

from vmm import fd
from vmm.kvm.ioctls import Ioctl

if TYPE_CHECKING:
    from enum import IntEnum

CAUSES: Final[dict[tuple[IntEnum, int], str]] = {
    (Ioctl.KVM_CREATE_VM, e.EINVAL): (
        "the kernel knows no such machine type: on arm64 the type is the IPA size in bits, "
        "32 up to KVM_CAP_ARM_VM_IPA_SIZE"
    ),
    (Ioctl.KVM_CREATE_VM, e.ENOMEM): "the host is out of memory",
    (Ioctl.KVM_CREATE_VCPU, e.EINVAL): (
        "the id is beyond KVM_CAP_MAX_VCPU_ID, the interrupt controller takes no more vCPUs, or "
        "it is initialised already"
    ),
    (Ioctl.KVM_CREATE_VCPU, e.EEXIST): "a vCPU with this id exists",
    (Ioctl.KVM_CREATE_VCPU, e.EBUSY): "vCPUs must exist before the interrupt controller runs",
    (Ioctl.KVM_SET_USER_MEMORY_REGION, e.EINVAL): (
        "address or size is not a multiple of the host's page, this kernel does not know a flag, "
        "a live slot's size, address or read-only flag was changed, or the mapping is device "
        "memory that cannot be mapped so at stage 2 (cacheable without FWB and DIC, or logged)"
    ),
    (Ioctl.KVM_SET_USER_MEMORY_REGION, e.EEXIST): (
        "another slot holds part of this guest physical range"
    ),
    (Ioctl.KVM_SET_USER_MEMORY_REGION, e.EFAULT): (
        "the range ends beyond the VM's IPA size: place it lower, or create the VM with more bits"
    ),
    (Ioctl.KVM_SET_USER_MEMORY_REGION, e.ENOMEM): "the host is out of memory",
    (Ioctl.KVM_SET_USER_MEMORY_REGION, e.ENOSPC): "every slot that KVM has for a VM is taken",
    (Ioctl.KVM_SET_USER_MEMORY_REGION2, e.ENOTTY): (
        "this kernel is older than KVM_CAP_USER_MEMORY2 (Linux 6.8)"
    ),
    (Ioctl.KVM_GET_DIRTY_LOG, e.ENOENT): "no such slot, or it has no KVM_MEM_LOG_DIRTY_PAGES",
    (Ioctl.KVM_IOEVENTFD, e.EEXIST): "an eventfd listens at this address already",
    (Ioctl.KVM_IRQFD, e.EBUSY): "this eventfd is bound to an interrupt already",
    (Ioctl.KVM_IRQFD, e.EAGAIN): "the interrupt controller is not initialised yet",
    (Ioctl.KVM_CREATE_DEVICE, e.ENODEV): "this host has no such device",
    (Ioctl.KVM_CREATE_DEVICE, e.EEXIST): "the VM has one already",
    (Ioctl.KVM_CREATE_DEVICE, e.EBUSY): "it must be created before any vCPU has run",
    (Ioctl.KVM_ARM_VCPU_INIT, e.EINVAL): (
        "the host's CPU lacks one of the features asked for, or they differ between vCPUs"
    ),
    (Ioctl.KVM_ARM_VCPU_INIT, e.ENOENT): "a feature this kernel does not know",
    (Ioctl.KVM_GET_ONE_REG, e.ENOENT): "this vCPU has no such register",
    (Ioctl.KVM_SET_ONE_REG, e.ENOENT): "this vCPU has no such register",
    (Ioctl.KVM_SET_ONE_REG, e.EINVAL): "the register does not take this value",
    (Ioctl.KVM_RUN, e.ENOEXEC): "KVM_ARM_VCPU_INIT has not been done",
    (Ioctl.KVM_RUN, e.EFAULT): (
        "the guest touched memory that the host could not fault in: its mapping is gone, its "
        "device's memory is off, or an unaligned access met Device memory at stage 2 (the host's "
        "log then says 'Unsupported FSC')"
    ),
    (Ioctl.KVM_RUN, e.ENOMEM): "the host is out of memory, for stage-2 tables for example",
    (Ioctl.KVM_RUN, e.EINVAL): (
        "the interrupt controller, timer or PMU is not set up as the vCPU's features need it"
    ),
    (Ioctl.KVM_RUN, e.ENOSYS): "the guest's access could not be decoded (no valid syndrome)",
    (Ioctl.KVM_RUN, e.EPERM): "an SVE vCPU was not finalised",
    (Ioctl.KVM_SET_DEVICE_ATTR, e.ENXIO): "this kernel does not know the attribute",
    (Ioctl.KVM_SET_DEVICE_ATTR, e.EEXIST): "the attribute was set already, or ranges overlap",
    (Ioctl.KVM_SET_DEVICE_ATTR, e.E2BIG): "the address lies beyond the VM's IPA size",
    (Ioctl.KVM_SET_DEVICE_ATTR, e.ENODEV): "no such device, or the host's GIC cannot do it",
    (Ioctl.KVM_SET_DEVICE_ATTR, e.EBUSY): "a vCPU has run already, or runs now",
    (Ioctl.KVM_GET_DEVICE_ATTR, e.ENXIO): "this kernel does not know the attribute",
    (Ioctl.KVM_GET_DEVICE_ATTR, e.EBUSY): "a vCPU runs",
}
for _errno in (e.EINVAL, e.EEXIST, e.EFAULT, e.ENOMEM):
    CAUSES[Ioctl.KVM_SET_USER_MEMORY_REGION2, _errno] = CAUSES[
        Ioctl.KVM_SET_USER_MEMORY_REGION, _errno
    ]

GENERAL: Final[dict[int, str]] = {
    **fd.GENERAL,
    e.EIO: (
        "another process opened this VM (its descriptors work only where it was created), or KVM "
        "has given it up after a bug: the host's log then says so"
    ),
    e.EMFILE: "too many open files: raise the limit (ulimit -n)",
    e.ENFILE: "the host is out of file table entries",
}


def likely_cause(request: IntEnum, errno: int) -> str:
    """Return the likely cause as one clause, or an empty string."""
    return CAUSES.get((request, errno)) or GENERAL.get(errno, "")
