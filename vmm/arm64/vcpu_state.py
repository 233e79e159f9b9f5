"""The state of a vCPU as named values: read from KVM while the vCPU does not run, and put back."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (typed_json reads the annotations)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm._native import lib
from vmm.arm64.register_names import id_of, name_of
from vmm.errors import HostError
from vmm.kvm.fd import KvmError
from vmm.typed_json import Hex, Wide  # noqa: TC001  (it reads the annotations)

if TYPE_CHECKING:
    from vmm.kvm.vcpu import Vcpu

MP_STATES: Final = {
    lib.KVM_MP_STATE_RUNNABLE: "runnable",
    lib.KVM_MP_STATE_STOPPED: "stopped",
    lib.KVM_MP_STATE_SUSPENDED: "suspended",
}
"""What PSCI made of a vCPU: on, off, or in SYSTEM_SUSPEND."""

COUNTERS: Final = ("CNTVCT_EL0", "CNTPCT_EL0")
"""Counters that are the whole VM's: a store sets their offset for all vCPUs
(arch/arm64/kvm/sys_regs.c, arch_timer_set_user)."""


@dataclass(frozen=True)
class VcpuState:
    """One vCPU.

    mp_state   a value of `MP_STATES`
    events     pending exceptions, as `Vcpu.get_events` returns them
    registers  all that KVM_GET_REG_LIST has, by the name that `register_names` gives each
    """

    mp_state: str
    events: Mapping[str, Hex]
    registers: Mapping[str, Wide]


def collect(vcpu: Vcpu, counter: int | None = None) -> VcpuState:
    """Return the state of *vcpu*, which does not run. Raises `KvmError`.

    *counter* is where the VM's virtual counter stands for the guest; None: where KVM has it.
    """
    state = vcpu.get_mp_state()
    registers = {name_of(register): vcpu.get_one_reg(register) for register in vcpu.get_reg_list()}
    if counter is not None:
        registers["CNTVCT_EL0"] = counter
    return VcpuState(MP_STATES.get(state, str(state)), vcpu.get_events(), registers)


def restore(vcpu: Vcpu, state: VcpuState) -> None:
    """Give *vcpu*, initialised and never run, the state that `collect` returned.

    The counters are left out: `restore_counters` sets them. A register that holds its value already
    is not stored to, so that read-only ones are compared. Raises `HostError`, which names what this
    host's vCPU lacks or does not take.
    """
    have = {name_of(register) for register in vcpu.get_reg_list()}
    for name in state.registers.keys() - have:
        raise HostError(f"vCPU {vcpu.id}: this host's vCPU has no register {name}")
    for name in have - state.registers.keys():
        raise HostError(f"vCPU {vcpu.id}: the saved vCPU has no register {name}")
    for name, value in state.registers.items():
        if name not in COUNTERS:
            _set(vcpu, name, value)
    vcpu.set_events(state.events)
    for number, name in MP_STATES.items():
        if name == state.mp_state:
            vcpu.set_mp_state(number)
            return
    raise HostError(f"vCPU {vcpu.id}: no KVM_MP_STATE is called {state.mp_state}")


def _set(vcpu: Vcpu, name: str, value: int) -> None:
    register = id_of(name)
    now = vcpu.get_one_reg(register)
    if now == value:
        return
    try:
        vcpu.set_one_reg(register, value)
    except KvmError as error:
        raise HostError(
            f"vCPU {vcpu.id}: {name} was {value:#x} where it was saved, is {now:#x} here, and KVM "
            "does not let it change",
            "the CPUs or kernels of the two hosts differ",
        ) from error


def restore_counters(vcpu: Vcpu, state: VcpuState) -> None:
    """Let the VM's counters go on from where *state* has them. Raises `KvmError`.

    Call it last, for the first vCPU alone: the guest's time stands still from `collect` until now.
    """
    for name in COUNTERS:
        if name in state.registers:
            vcpu.set_one_reg(id_of(name), state.registers[name])
