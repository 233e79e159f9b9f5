"""Make VMs that show what guests of other hosts have seen; tell which registers KVM refuses.

Run in an emulated host, with files of `compat save` or `compat baseline` as arguments. Prints a
JSON object: for each file the names of what is refused, and the ID registers that a vCPU shows
then.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmm.arm64.gic import Gic
from vmm.arm64.id_registers import id_registers
from vmm.arm64.processor import ProcessorModel
from vmm.errors import HostError
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.state.baseline import Baseline
from vmm.state.comparison import gic_of
from vmm.state.visible_cpu import VisibleCpu, without
from vmm.typed_json import decode


def shown(system: System, baseline: Baseline) -> dict[str, Any]:
    """Return what KVM refuses of *baseline*, and what a vCPU shows after that."""
    cpu = baseline.cpu
    refused = []
    kinds = {gic_of(cpu), *({"ITS"} & set(cpu.gic))}
    with system.create_vm() as vm:
        try:
            gic = Gic(vm, 1, kinds)
        except HostError:
            return {"refused": ["GIC"], "registers": {}}
        with gic, vm.create_vcpu(0) as vcpu:
            model = ProcessorModel(vm, cpu.features, baseline.vector_length)
            refused += sorted(set(cpu.features) - model.optional)
            # Fields that tell of what is lacking are no further reasons.
            both = tuple(name for name in cpu.features if name in model.optional)
            cpu = replace(cpu, registers=without(cpu.registers, both))
            baseline = replace(baseline, cpu=cpu)
            model.initialise(vcpu, powered_off=False)
            for name, register, _, value in baseline.writes(vcpu):
                try:
                    vcpu.set_one_reg(register, value)
                except KvmError:
                    refused.append(name)
            every = id_registers()
            registers = {name: hex(vcpu.get_one_reg(every[name].id)) for name in cpu.registers}
    return {"refused": refused, "registers": registers}


found = {}
with System.open() as system:
    for path in map(Path, sys.argv[1:]):
        value = json.loads(path.read_text())
        cpu = decode(VisibleCpu, value["cpu"], str(path))
        found[path.stem] = shown(system, Baseline(path, cpu))
json.dump(found, sys.stdout)
