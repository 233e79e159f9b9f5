"""Checks of a failed KVM ioctl against its arguments and what KVM answers: see `vmm.cause`."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.cause import holds, is_closed
from vmm.kvm.capability import Cap

if TYPE_CHECKING:
    from vmm.cause import Check, FailedCall

MOST_PAGES: Final = (1 << 31) - 1
"""KVM_MEM_MAX_NR_PAGES: of one slot."""

MAX_VCPU_ID: Final = int(lib.KVM_CAP_MAX_VCPU_ID)

LENGTHS: Final = (0, 1, 2, 4, 8)
"""Bytes that an ioeventfd may listen for; 0 is any."""


def extension(call: FailedCall, capability: int) -> int | None:
    """Return KVM's answer about *capability* on the call's descriptor; None if there is none."""
    answer = int(lib.pyvmm_ioctl(call.fd, lib.KVM_CHECK_EXTENSION, capability))
    return answer if answer > 0 else None


def at_least(argument: str, capability: int) -> Check:
    """Return a check: *argument* is no less than what *capability* says."""

    def check(call: FailedCall) -> bool | None:
        value, limit = call.number(argument), extension(call, capability)
        return None if value is None or limit is None else value >= limit

    return check


def too_many_bits(call: FailedCall) -> bool | None:
    """Tell whether a machine type asks for more IPA bits than there are, or fewer than 32."""
    bits, limit = call.number("type"), extension(call, Cap.ARM_VM_IPA_SIZE)
    return None if bits is None or limit is None else bool(bits) and not 32 <= bits <= limit


slot_is_large: Final = holds("memory_size", lambda size: size // mmap.PAGESIZE > MOST_PAGES)
"""A slot has more pages than KVM counts."""


def slot_wraps(call: FailedCall) -> bool | None:
    """Tell whether a slot's end is past the last 64-bit address."""
    base, size = call.number("guest_phys_addr"), call.number("memory_size")
    return None if base is None or size is None else base + size > 1 << 64


def slot_number_is_high(call: FailedCall) -> bool | None:
    """Tell whether there is no such slot; the upper 16 bits are an address space (x86)."""
    number, limit = call.number("slot"), extension(call, Cap.NR_MEMSLOTS)
    return None if number is None or limit is None else number & 0xFFFF >= limit


host_address_is_tagged: Final = holds("userspace_addr", lambda address: address >> 56 != 0)
"""The top byte of a slot's host address is not zero: it is a tag, or the kernel's."""


def flags_are_unknown(call: FailedCall) -> bool | None:
    """Tell whether one of a slot's flags is new to this kernel; the proposed ones may be."""
    flags = call.number("flags")
    if flags is None:
        return None
    known = int(lib.KVM_MEM_LOG_DIRTY_PAGES)
    for bit, capability in (
        (lib.KVM_MEM_READONLY, Cap.READONLY_MEM),
        (lib.KVM_MEM_GUEST_MEMFD, Cap.GUEST_MEMFD),
    ):
        if flags & bit and extension(call, capability):
            known |= bit
    new = flags & ~known
    return None if new == lib.PYVMM_MEM_WRITE_BACK else new != 0


def on(file: str) -> Check:
    """Return a check: the call was made on another class of descriptor than *file*, or may fit."""

    def check(call: FailedCall) -> bool | None:
        return False if call.file and call.file != file else None

    return check


def is_open(call: FailedCall) -> bool:
    """Tell whether the call's own descriptor is open: then EBADF was about an argument's."""
    return not is_closed(call)


def datamatch_without_length(call: FailedCall) -> bool | None:
    """Tell whether an ioeventfd asks for a value, but gives no length."""
    flags, length = call.number("flags"), call.number("len")
    if flags is None or length is None:
        return None
    return bool(flags & lib.KVM_IOEVENTFD_FLAG_DATAMATCH) and length == 0


OPTIONAL: Final = (
    lib.KVM_ARM_VCPU_PMU_V3,
    lib.KVM_ARM_VCPU_SVE,
    lib.KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    lib.KVM_ARM_VCPU_PTRAUTH_GENERIC,
)
"""Bits of vCPU features that not every host has."""


def feature_is_optional(call: FailedCall) -> bool | None:
    """Tell whether a vCPU's features are ones that every host has: then none is missing.

    A vCPU answers no KVM_CHECK_EXTENSION, and nothing may be opened once the process is sealed.
    """
    features = call.number("features")
    wanted = features is None or any(features >> bit & 1 for bit in OPTIONAL)
    return None if wanted else False


half_of_pointer_authentication: Final = holds(
    "features",
    lambda features: (
        bool(features >> lib.KVM_ARM_VCPU_PTRAUTH_ADDRESS & 1)
        != bool(features >> lib.KVM_ARM_VCPU_PTRAUTH_GENERIC & 1)
    ),
)
"""A vCPU's features have one of the two kinds of pointer authentication."""


def is_pmu_init(call: FailedCall) -> bool:
    """Tell whether an attribute of a vCPU is its PMU's initialisation."""
    attribute = call.number("group"), call.number("attr")
    return call.file == "Vcpu" and attribute == (
        lib.KVM_ARM_VCPU_PMU_V3_CTRL,
        lib.KVM_ARM_VCPU_PMU_V3_INIT,
    )


def is_number_of_interrupts(call: FailedCall) -> bool:
    """Tell whether an attribute is a GIC's number of interrupts."""
    return call.file == "Device" and call.number("group") == lib.KVM_DEV_ARM_VGIC_GRP_NR_IRQS
