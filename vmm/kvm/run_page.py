"""The page that a vCPU shares with KVM: ``struct kvm_run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm._native import ffi, lib
from vmm.kvm.exits import (
    Debug,
    Exit,
    FailedEntry,
    InternalError,
    MemoryFault,
    MmioRead,
    MmioWrite,
    SynchronousExternalAbort,
    SystemEvent,
    Undecodable,
    Unknown,
)

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable


class RunPage:
    """Decode exits from a mapped ``kvm_run``, and answer them.

    `ffi.from_buffer` holds the mapping: closing that first raises BufferError instead of leaving a
    dangling pointer. So `close` this before the mapping.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self.run: Any = ffi.from_buffer("struct kvm_run *", mapping, require_writable=True)
        self._mmio = self.run.mmio
        self._data = ffi.cast("uint64_t *", self._mmio.data)

    def close(self) -> None:
        """Release the mapping."""
        self.run = self._mmio = self._data = None

    def store(self) -> MmioWrite:
        """Return the store that ended the last KVM_RUN."""
        mmio = self._mmio
        return MmioWrite(mmio.phys_addr, mmio.len, self._data[0])

    def load(self) -> MmioRead:
        """Return the load that ended the last KVM_RUN."""
        mmio = self._mmio
        return MmioRead(mmio.phys_addr, mmio.len)

    def exit(self) -> Exit:
        """Return the exit that ended the last KVM_RUN, if it was not MMIO."""
        reason = self.run.exit_reason
        decode = DECODERS.get(reason)
        return decode(self.run) if decode else Unknown(reason)

    def complete_read(self, value: int) -> None:
        """Answer an `MmioRead`: the next KVM_RUN completes the guest's load with *value*."""
        self._data[0] = value


def _memory_fault(run: Any) -> MemoryFault:
    fault = ffi.cast("struct pyvmm_exit_memory_fault *", ffi.addressof(run.mmio))
    return MemoryFault(fault.flags, fault.gpa, fault.size)


def _synchronous_external_abort(run: Any) -> SynchronousExternalAbort:
    sea = ffi.cast("struct pyvmm_exit_arm_sea *", ffi.addressof(run.mmio))
    return SynchronousExternalAbort(sea.flags, sea.esr, sea.gva, sea.gpa)


def _debug(run: Any) -> Debug:
    debug = ffi.cast("struct pyvmm_exit_arm64_debug *", ffi.addressof(run.mmio))
    return Debug(debug.hsr_high << 32 | debug.hsr, debug.far)


def _words(event: Any) -> tuple[int, ...]:
    return tuple(event.data[0 : min(event.ndata, 16)])


DECODERS: dict[int, Callable[[Any], Exit]] = {
    lib.KVM_EXIT_SYSTEM_EVENT: lambda run: SystemEvent(
        run.system_event.type, _words(run.system_event)
    ),
    lib.KVM_EXIT_ARM_NISV: lambda run: Undecodable(run.arm_nisv.esr_iss, run.arm_nisv.fault_ipa),
    lib.KVM_EXIT_MEMORY_FAULT: _memory_fault,
    lib.KVM_EXIT_DEBUG: _debug,
    lib.KVM_EXIT_ARM_SEA: _synchronous_external_abort,
    lib.KVM_EXIT_INTERNAL_ERROR: lambda run: InternalError(
        run.internal.suberror, _words(run.internal)
    ),
    lib.KVM_EXIT_FAIL_ENTRY: lambda run: FailedEntry(
        run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu
    ),
}
