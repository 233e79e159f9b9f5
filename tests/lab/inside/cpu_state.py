"""Run in a lab host: move vCPUs and GIC into another VM, and report as JSON what differs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from vmm._native import lib
from vmm.arm64 import gic_state, processor, vcpu_state
from vmm.arm64.gic_registers import Register, gicv2, gicv3
from vmm.arm64.gic_state import GicState
from vmm.arm64.register_names import id_of
from vmm.arm64.vcpu_state import COUNTERS, VcpuState
from vmm.config import MachineConfig
from vmm.errors import HostError
from vmm.kvm.system import System
from vmm.machine.address_space import AddressSpace
from vmm.machine.power_cycle import PowerCycle

CPUS = 2
CONFIG = MachineConfig(image=Path(), cpus=CPUS)

WORDS = {
    "x7": 0x1122_3344_5566_7788,
    "sp": 0x4000_1000,
    "pc": 0x4008_0000,
    "SP_EL1": 0xFFFF_0000_1234_5670,
    "ELR_EL1": 0x4008_0004,
    "TTBR1_EL1": 0x4123_0000,
    "TPIDR_EL0": 0x77,
    "CNTV_CVAL_EL0": 0x1_0000_0000,
    "CNTV_CTL_EL0": 1,
    "APIAKeyLo_EL1": 0x0123_4567_89AB_CDEF,
    "fpcr": 0x0100_0000,
    "v3": 0x0F1E_2D3C << 64 | 5,
    "Z3": 0x0F1E_2D3C << 64 | 5,
    "P2": 0x11,
}
"""Registers to set before the state is read, where the vCPU has them."""

PRIVATE = {
    "GICD_IPRIORITYR5": 0xA0A0_A0A0,
    "GICR_IPRIORITYR5": 0xA0A0_A0A0,
    "GICD_ISENABLER0": 0x0800_0002,
    "GICR_ISENABLER0": 0x0800_0002,
    "GICR_ISPENDR0": 0x0800_0000,
}
SHARED = {
    "GICD_IROUTER40_lo": 1,
    "GICD_ICFGR2": 0x0002_0000,
    "GICD_IPRIORITYR10": 0x8080_8080,
    "GICD_ITARGETSR10": 0x0202_0202,
    "GICD_ISPENDR1": 0x100,
    "GICD_ISENABLER1": 0x100,
    "GICD_ISACTIVER1": 0x200,
    "level1": 0x400,
}


def mpidrs(cycle: PowerCycle) -> list[int]:
    return [processor.affinity(vcpu) for vcpu in cycle.vcpus]


def registers(cycle: PowerCycle) -> list[Register]:
    gic = cycle.gic
    return list(gicv2(CPUS) if gic.version == 2 else gicv3(gic.controller, mpidrs(cycle)))


def disturb(cycle: PowerCycle) -> None:
    """Give registers values that no reset gives them."""
    for vcpu in cycle.vcpus:
        have = set(vcpu.get_reg_list())
        for name, value in WORDS.items():
            if id_of(name) in have:
                vcpu.set_one_reg(id_of(name), value + 16 * vcpu.id)
    cycle.vcpus[1].set_mp_state(lib.KVM_MP_STATE_STOPPED)
    cycle.vcpus[0].set_events({"serror_pending": 1})
    found = gic_state.collect(cycle.gic, mpidrs(cycle))
    sections = {
        section: {
            name: (SHARED if section == "distributor" else PRIVATE).get(name, value)
            for name, value in names.items()
        }
        for section, names in found.registers.items()
    }
    gic_state.restore(cycle.gic, mpidrs(cycle), GicState(found.version, sections))


def collect(cycle: PowerCycle) -> dict[str, object]:
    """Return the state of vCPUs and GIC as JSON would bring it back."""
    state = {
        "vcpus": [dataclasses.asdict(vcpu_state.collect(vcpu)) for vcpu in cycle.vcpus],
        "gic": dataclasses.asdict(gic_state.collect(cycle.gic, mpidrs(cycle))),
    }
    return json.loads(json.dumps(state))  # type: ignore[no-any-return]


def restore(cycle: PowerCycle, state: dict) -> None:  # type: ignore[type-arg]
    gic_state.restore(cycle.gic, mpidrs(cycle), GicState(**state["gic"]))
    for vcpu, each in zip(cycle.vcpus, state["vcpus"], strict=True):
        vcpu_state.restore(vcpu, VcpuState(**each))
    vcpu_state.restore_counters(cycle.vcpus[0], VcpuState(**state["vcpus"][0]))


def flat(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, list):
        value = {str(index): each for index, each in enumerate(value)}
    if not isinstance(value, dict):
        return {path: value}
    parts = [flat(each, f"{path}.{name}" if path else name) for name, each in value.items()]
    return {name: each for part in parts for name, each in part.items()}


def refused(state: dict, name: str, value: int) -> str:  # type: ignore[type-arg]
    """Return what a restore says about a register that has another value."""
    state["vcpus"][0]["registers"][name] = value
    with (
        System.open() as system,
        AddressSpace(CONFIG, system) as space,
        PowerCycle(system, space, CPUS) as cycle,
    ):
        try:
            restore(cycle, state)
        except HostError as error:
            return str(error)
    return ""


def main() -> None:
    """Print the differences, and what was compared."""
    with System.open() as system, AddressSpace(CONFIG, system) as space:
        with PowerCycle(system, space, CPUS) as cycle:
            fresh = flat(collect(cycle))
            disturb(cycle)
            first = collect(cycle)
        with PowerCycle(system, space, CPUS) as cycle:
            restore(cycle, first)
            second = collect(cycle)
    old, new = flat(first), flat(second)
    counters = [name for name in old if name.endswith(COUNTERS)]
    differences = {
        name: [old.get(name), new.get(name)]
        for name in old.keys() | new.keys()
        if name not in counters and old.get(name) != new.get(name)
    }
    mmfr2 = first["vcpus"][0]["registers"]["ID_AA64MMFR2_EL1"]  # type: ignore[index]
    report = {
        "values": len(old),
        "disturbed": sorted(name for name in old if old[name] != fresh.get(name)),
        "differences": differences,
        "counters": {name: [old[name], new[name]] for name in counters},
        "version": first["gic"]["version"],  # type: ignore[index]
        "refused": refused(first, "ID_AA64MMFR2_EL1", mmfr2 ^ 1 << 40),
    }
    json.dump(report, sys.stdout)


main()
