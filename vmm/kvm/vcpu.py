"""A virtual CPU: running it, kicking it, and its registers."""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm._native import ffi, lib
from vmm.kvm.exits import Exit, Interrupted, MemoryFault
from vmm.kvm.fd import AttributeFd, KvmError
from vmm.kvm.ioctls import Ioctl
from vmm.kvm.run_page import RunPage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.kvm.exit_observer import ExitObserver
    from vmm.kvm.mmio_fastpath import MmioFastpath

INTERRUPTED: Final = Interrupted()
EINTR: Final = -errno.EINTR
STORE: Final = lib.PYVMM_RUN_STORE
LOAD: Final = lib.PYVMM_RUN_LOAD

EVENTS: Final = ("serror_pending", "serror_has_esr", "serror_esr", "ext_dabt_pending")
"""Members of arm64's ``struct kvm_vcpu_events``."""


class DebugPair(NamedTuple):
    """DBGBCR<n>_EL1 and DBGBVR<n>_EL1, or DBGWCR<n>_EL1 and DBGWVR<n>_EL1."""

    control: int
    value: int


class GuestDebug(NamedTuple):
    """What of a vCPU is to end in a `Debug` exit.

    step         the next instruction
    trap_brk     each BRK, the guest's own too
    breakpoints  hardware breakpoints; with these or *watchpoints* the guest's own do not work
    watchpoints  hardware watchpoints
    """

    step: bool = False
    trap_brk: bool = False
    breakpoints: tuple[DebugPair, ...] = ()
    watchpoints: tuple[DebugPair, ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether there is anything to ask for."""
        return any(self)


class Vcpu(AttributeFd):
    """A vCPU's file descriptor and its shared page.

    One thread calls `run`; any thread may `kick`.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int) -> None:
        super().__init__(fd)
        self.id = vcpu_id
        try:
            lib.pyvmm_kick_prepare()
            self._mapping = mmap.mmap(fd, mmap_size, mmap.MAP_SHARED)
        except BaseException:
            super().close()
            raise
        self._page = RunPage(self._mapping)
        self._state: Any = ffi.new("struct pyvmm_vcpu *", {"fd": fd, "run": self._page.run})
        self._answers: MmioFastpath | None = None
        self._observer: ExitObserver | None = None
        self.complete_read = self._page.complete_read
        self._store, self._load, self._exit = self._page.store, self._page.load, self._page.exit

    def close(self) -> None:
        """Close the vCPU. No thread may be in `run`. Idempotent."""
        if self._fd >= 0:
            lib.pyvmm_observe_end(self._state)
            self._state.fd = -1
            self._page.close()
            self._state.run = ffi.NULL
            self._mapping.close()
        super().close()

    # --- running --------------------------------------------------------------------------

    def run(self) -> Exit:
        """Run the guest until an exit that C does not answer, and return that exit.

        Returns `Interrupted` after a `kick`. Raises `KvmError`.
        """
        result = lib.pyvmm_run(self._state)
        if result == STORE:
            return self._store()
        if result == LOAD:
            return self._load()
        if result == 0:
            return self._exit()
        if result == EINTR:
            return INTERRUPTED
        if result == -errno.EFAULT and isinstance(fault := self._exit(), MemoryFault):
            return fault
        raise KvmError(Ioctl.KVM_RUN, -result, {"vcpu": self.id})

    def kick(self) -> None:
        """Make `run` return `Interrupted` soon, or its next call at once. Thread-safe."""
        if self._fd >= 0:
            lib.pyvmm_kick(self._state)

    def acknowledge_kick(self) -> None:
        """Let the next `run` enter the guest again. Call it from the vCPU's own thread.

        Call it before looking at what the kick was for: a kick in between is then not lost.
        """
        lib.pyvmm_clear_immediate_exit(self._state)

    def set_answers(self, answers: MmioFastpath | None) -> None:
        """Set the accesses that the C run loop answers, or None. The vCPU keeps *answers* alive."""
        lib.pyvmm_set_answers(self._state, ffi.NULL if answers is None else answers.c)
        self._answers = answers

    def observe(self, observer: ExitObserver | None) -> None:
        """Let the C run loop count in *observer* from its next entry to the guest on, or nowhere.

        Only None to an observer may be set while a thread is in `run`; the vCPU keeps it alive.
        """
        lib.pyvmm_observe(self._state, ffi.NULL if observer is None else observer.c)
        self._observer = observer

    @property
    def exits(self) -> int:
        """How many times KVM_RUN has returned."""
        return lib.pyvmm_exits(self._state)

    @property
    def answered(self) -> int:
        """How many of these returns C has answered."""
        return lib.pyvmm_answered_count(self._state)

    # --- registers and state ----------------------------------------------------------------

    def get_one_reg(self, register: int) -> int:
        """Return the register with id *register*, KVM_REG_*. Raises `KvmError`."""
        value = bytearray(self._reg_size(register))
        self._one_reg(Ioctl.KVM_GET_ONE_REG, register, value)
        return int.from_bytes(value, "little")

    def set_one_reg(self, register: int, value: int) -> None:
        """Set the register with id *register*, KVM_REG_*. Raises `KvmError`."""
        data = bytearray(value.to_bytes(self._reg_size(register), "little"))
        self._one_reg(Ioctl.KVM_SET_ONE_REG, register, data)

    def get_reg_list(self) -> list[int]:
        """Return the ids of all registers that this vCPU has, in KVM's order. Raises `KvmError`.

        Initialise and finalise the vCPU first. Source: api.rst, KVM_GET_REG_LIST.
        """
        count = 0
        while True:
            found = ffi.new("struct kvm_reg_list *", {"n": count, "reg": count})
            result = self.try_ioctl(Ioctl.KVM_GET_REG_LIST, found)
            if result != -errno.E2BIG or found.n <= count:
                break
            count = found.n
        self.checked(result, Ioctl.KVM_GET_REG_LIST, {"vcpu": self.id, "n": count})
        return [int(found.reg[index]) for index in range(found.n)]

    def get_mp_state(self) -> int:
        """Return whether the vCPU runs or waits for PSCI: KVM_MP_STATE_*. Raises `KvmError`."""
        return int(self.ioctl_struct(Ioctl.KVM_GET_MP_STATE, "kvm_mp_state").mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """Set KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED or another. Raises `KvmError`."""
        self.ioctl_struct(Ioctl.KVM_SET_MP_STATE, "kvm_mp_state", mp_state=mp_state)

    def get_events(self) -> dict[str, int]:
        """Return the exceptions that are pending, by their names in ``struct kvm_vcpu_events``.

        arm64 only: serror_pending, serror_has_esr, serror_esr, ext_dabt_pending. Raises `KvmError`.
        """
        events = ffi.new("struct pyvmm_arm64_vcpu_events *")
        self.ioctl(Ioctl.KVM_GET_VCPU_EVENTS, events, vcpu=self.id)
        return {name: int(getattr(events, name)) for name in EVENTS}

    def set_events(self, events: Mapping[str, int]) -> None:
        """Set the exceptions that are pending, as `get_events` returns them. Raises `KvmError`."""
        self.ioctl_value(
            Ioctl.KVM_SET_VCPU_EVENTS,
            "struct pyvmm_arm64_vcpu_events",
            dict(events),
            vcpu=self.id,
            **events,
        )

    def _one_reg(self, request: Ioctl, register: int, data: bytearray) -> None:
        with ffi.from_buffer("uint8_t[]", data, require_writable=True) as pointer:
            arg = ffi.new(
                "struct kvm_one_reg *",
                {"id": register, "addr": int(ffi.cast("uintptr_t", pointer))},
            )
            self.ioctl(request, arg, vcpu=self.id, id=register)

    @staticmethod
    def _reg_size(register: int) -> int:
        return 1 << ((register & lib.KVM_REG_SIZE_MASK) >> lib.KVM_REG_SIZE_SHIFT)

    def arm_vcpu_init(self, init: Any) -> None:
        """Reset the vCPU to *init*, a ``struct kvm_vcpu_init`` (arm64). Raises `KvmError`."""
        self.ioctl(
            Ioctl.KVM_ARM_VCPU_INIT,
            init,
            vcpu=self.id,
            target=init.target,
            features=init.features[0],
        )

    def arm_vcpu_finalize(self, feature: int) -> None:
        """Fix the configuration of *feature*, KVM_ARM_VCPU_SVE (arm64). Raises `KvmError`."""
        request = Ioctl.KVM_ARM_VCPU_FINALIZE
        self.ioctl_value(request, "int", feature, vcpu=self.id, feature=feature)

    def set_guest_debug(self, debug: GuestDebug) -> None:
        """Ask for `Debug` exits (arm64). The vCPU must be out of `run`. Raises `KvmError`.

        Source: Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG.
        """
        control = lib.KVM_GUESTDBG_ENABLE if debug.enabled else 0
        control |= lib.KVM_GUESTDBG_SINGLESTEP if debug.step else 0
        control |= lib.PYVMM_ARM64_GUESTDBG_USE_SW_BP if debug.trap_brk else 0
        hardware = bool(debug.breakpoints or debug.watchpoints)
        control |= lib.PYVMM_ARM64_GUESTDBG_USE_HW if hardware else 0
        value: dict[str, Any] = {"control": control}
        for kind, pairs in (("b", debug.breakpoints), ("w", debug.watchpoints)):
            value[f"dbg_{kind}cr"] = [pair.control for pair in pairs]
            value[f"dbg_{kind}vr"] = [pair.value for pair in pairs]
        self.ioctl_value(
            Ioctl.KVM_SET_GUEST_DEBUG,
            "struct pyvmm_arm64_guest_debug",
            value,
            vcpu=self.id,
            control=control,
        )

    def inject_external_abort(self) -> None:
        """Inject a synchronous external data abort for the access that exited (arm64).

        Use it after `run` returned an access that nobody can answer (KVM_CAP_ARM_INJECT_EXT_DABT).
        Raises `KvmError`.
        """
        self.set_events({"ext_dabt_pending": 1})
