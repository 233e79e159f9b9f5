"""Why KVM_RUN returned: one type for each exit that pyvmm understands.

Exits are immutable values: tests build them by hand, and the run loop matches on them.
Source: Documentation/virt/kvm/api.rst, section 5.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from vmm._native import lib


class SystemEventType(IntEnum):
    """The kind of a `SystemEvent`, KVM_SYSTEM_EVENT_*."""

    SHUTDOWN = lib.KVM_SYSTEM_EVENT_SHUTDOWN
    RESET = lib.KVM_SYSTEM_EVENT_RESET
    CRASH = lib.KVM_SYSTEM_EVENT_CRASH
    SEV_TERM = lib.KVM_SYSTEM_EVENT_SEV_TERM
    WAKEUP = lib.KVM_SYSTEM_EVENT_WAKEUP
    SUSPEND = lib.KVM_SYSTEM_EVENT_SUSPEND


class MmioRead(NamedTuple):
    """A load from an address without memory, to be answered by `Vcpu.complete_read`."""

    address: int
    size: int


class MmioWrite(NamedTuple):
    """A store to an address without memory."""

    address: int
    size: int
    value: int


class SystemEvent(NamedTuple):
    """PSCI SYSTEM_OFF, SYSTEM_RESET and the like. *flags* are the event's data words."""

    type: int
    flags: tuple[int, ...]


class Interrupted(NamedTuple):
    """A kick ended KVM_RUN. There is nothing to answer."""


class Undecodable(NamedTuple):
    """KVM_EXIT_ARM_NISV: an access outside memory whose syndrome does not describe it.

    *esr_iss* is the syndrome's ISS field, *fault_ipa* the guest physical address.
    """

    esr_iss: int
    fault_ipa: int


class MemoryFault(NamedTuple):
    """KVM_EXIT_MEMORY_FAULT: KVM could not resolve a fault at *gpa*. Always with EFAULT."""

    flags: int
    gpa: int
    size: int


class SynchronousExternalAbort(NamedTuple):
    """KVM_EXIT_ARM_SEA: the memory system reported an error on the guest's access."""

    flags: int
    esr: int
    gva: int
    gpa: int


class Debug(NamedTuple):
    """KVM_EXIT_DEBUG: a breakpoint, watchpoint or step that `Vcpu.set_guest_debug` asked for.

    *esr* is the syndrome, as ESR_EL2 has it; *far* the address of a watchpoint's access, else 0.
    """

    esr: int
    far: int


class InternalError(NamedTuple):
    """KVM gave up: *suberror* as in KVM_INTERNAL_ERROR_*."""

    suberror: int
    data: tuple[int, ...]


class FailedEntry(NamedTuple):
    """The hardware refused to enter the guest."""

    reason: int
    cpu: int


class Unknown(NamedTuple):
    """Any other exit, by its KVM_EXIT_* number."""

    reason: int


Exit = (
    MmioRead
    | MmioWrite
    | SystemEvent
    | Interrupted
    | Undecodable
    | MemoryFault
    | SynchronousExternalAbort
    | Debug
    | InternalError
    | FailedEntry
    | Unknown
)
