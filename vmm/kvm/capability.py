"""KVM's capabilities, by the kernel's names for them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from vmm._native import lib

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "KVM_CAP_"


def capabilities() -> Mapping[str, int]:
    """Return the number of every capability in the cdefs, by name, in numeric order."""
    names = [name for name in dir(lib) if name.startswith(PREFIX)]
    return dict(sorted(((name, getattr(lib, name)) for name in names), key=lambda item: item[1]))


class Cap(int, Enum):
    """The capabilities that pyvmm asks for."""

    USER_MEMORY = lib.KVM_CAP_USER_MEMORY
    IMMEDIATE_EXIT = lib.KVM_CAP_IMMEDIATE_EXIT
    MAX_VCPUS = lib.KVM_CAP_MAX_VCPUS
    NR_MEMSLOTS = lib.KVM_CAP_NR_MEMSLOTS
    MANUAL_DIRTY_LOG_PROTECT2 = lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
    USER_MEMORY2 = lib.KVM_CAP_USER_MEMORY2
    GUEST_MEMFD = lib.KVM_CAP_GUEST_MEMFD
    READONLY_MEM = lib.KVM_CAP_READONLY_MEM
    ARM_VM_IPA_SIZE = lib.KVM_CAP_ARM_VM_IPA_SIZE
    ARM_PMU_V3 = lib.KVM_CAP_ARM_PMU_V3
    ARM_SVE = lib.KVM_CAP_ARM_SVE
    ARM_PTRAUTH_ADDRESS = lib.KVM_CAP_ARM_PTRAUTH_ADDRESS
    ARM_PTRAUTH_GENERIC = lib.KVM_CAP_ARM_PTRAUTH_GENERIC
    ARM_MTE = lib.KVM_CAP_ARM_MTE
    ARM_SUPPORTED_REG_MASK_RANGES = lib.KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES
    ARM_WRITABLE_IMP_ID_REGS = lib.KVM_CAP_ARM_WRITABLE_IMP_ID_REGS
    ARM_NISV_TO_USER = lib.KVM_CAP_ARM_NISV_TO_USER
    SET_GUEST_DEBUG = lib.KVM_CAP_SET_GUEST_DEBUG
    GUEST_DEBUG_HW_BPS = lib.KVM_CAP_GUEST_DEBUG_HW_BPS
    GUEST_DEBUG_HW_WPS = lib.KVM_CAP_GUEST_DEBUG_HW_WPS
    ARM_CACHEABLE_PFNMAP_SUPPORTED = lib.KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED
