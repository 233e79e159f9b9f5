"""The state of a GIC as named values: read from KVM while no vCPU runs, and put back.

    collect: LPIs' pending bits and the ITS's tables --> guest memory; registers --> GicState
    restore: registers, then the ITS's tables <-- guest memory

So guest memory is read after `collect`, and is whole before `restore`. Source:
Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Restore Sequence".
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (typed_json reads the annotations)
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from vmm._native import ffi, lib
from vmm.arm64 import gic_registers
from vmm.errors import HostError
from vmm.typed_json import Hex  # noqa: TC001  (it reads the annotations)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.arm64.gic import Gic
    from vmm.arm64.gic_registers import Register
    from vmm.kvm.device import Device

LPIS_ENABLED: Final = 1
"""GICR_CTLR.EnableLPIs."""


@dataclass(frozen=True)
class GicState:
    """A GIC's registers by section (distributor, cpu0, cpu1..., its) and name.

    The levels of 32 inputs are ``level<n>``. ``its`` is there if the GIC has an ITS.
    """

    version: int
    registers: Mapping[str, Mapping[str, Hex]]


def _registers(gic: Gic, mpidrs: Sequence[int]) -> Iterable[Register]:
    if gic.version == 2:
        return gic_registers.gicv2(len(mpidrs))
    return gic_registers.gicv3(gic.controller, mpidrs)


def collect(gic: Gic, mpidrs: Sequence[int]) -> GicState:
    """Return the state of *gic*, whose vCPUs have the affinities *mpidrs* and do not run.

    Writes LPIs' pending bits and the ITS's tables into guest memory. Raises `KvmError`.
    """
    found: dict[str, dict[str, int]] = {}
    for each in _registers(gic, mpidrs):
        _read(gic.controller, each, found)
    if gic.its is not None:
        if any(cpu.get("GICR_CTLR", 0) & LPIS_ENABLED for cpu in found.values()):
            gic.controller.set_attr(
                lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES
            )
        gic.its.set_attr(lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_ITS_SAVE_TABLES)
        for each in gic_registers.its():
            _read(gic.its, each, found)
    return GicState(gic.version, found)


def _read(device: Device, register: Register, found: dict[str, dict[str, int]]) -> None:
    value = device.get_attr(register.group, register.attr, register.kind)
    found.setdefault(register.section, {})[register.name] = value


def check(gic: Gic, mpidrs: Sequence[int], state: GicState) -> None:
    """Raise `HostError` if *state* is of another kind of GIC than *gic*."""
    if state.version != gic.version:
        raise HostError(
            f"the saved GIC has version {state.version}, this host's has version {gic.version}"
        )
    if ("its" in state.registers) != (gic.its is not None):
        raise HostError("one of the saved GIC and this host's has an ITS, and the other has none")
    wanted = chain(_registers(gic, mpidrs), gic_registers.its() if gic.its else ())
    for each in wanted:
        if each.name not in state.registers.get(each.section, {}):
            raise HostError(f"the saved GIC has no {each.section}.{each.name}")


def restore(gic: Gic, mpidrs: Sequence[int], state: GicState) -> None:
    """Give *gic*, initialised and never used, the state that `collect` returned.

    Guest memory must be whole. Raises `HostError` if the GICs differ in kind, and `KvmError`.
    """
    check(gic, mpidrs, state)
    for each in _registers(gic, mpidrs):
        _write(gic.controller, each, state)
    if gic.its is not None:
        *tables, control = gic_registers.its()
        for each in tables:
            _write(gic.its, each, state)
        gic.its.set_attr(lib.KVM_DEV_ARM_VGIC_GRP_CTRL, lib.KVM_DEV_ARM_ITS_RESTORE_TABLES)
        _write(gic.its, control, state)


def _write(device: Device, register: Register, state: GicState) -> None:
    value = state.registers[register.section][register.name]
    if register.clear is not None:
        device.set_attr(register.group, register.clear, ffi.new("uint32_t *", 0xFFFF_FFFF & ~value))
    device.set_attr(register.group, register.attr, ffi.new(f"{register.kind} *", value))
