"""Offer KVM values for each field of each ID register; print where the model predicts otherwise.

For each field: its neighbours, zero, and all ones; and each register with each bit of no field.
Run in an emulated host. Prints a JSON object: how many values were tried, and the surprises.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from vmm.arm64.gic import Gic
from vmm.arm64.id_registers import FREE, IdRegister, id_registers
from vmm.arm64.processor import ProcessorModel
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.kvm.vcpu import Vcpu


def candidates(register: IdRegister, limit: int) -> Iterator[int]:
    rest = (1 << 64) - 1
    for field in register.fields:
        rest &= ~field.mask
        now, top = field.get(limit), (1 << field.width) - 1
        for value in {now, now - 1 & top, now + 1 & top, 0, top}:
            yield field.put(limit, value)
    for bit in range(64):
        if rest >> bit & 1:
            yield limit ^ 1 << bit


def takes(vcpu: Vcpu, register: int, value: int) -> bool:
    try:
        vcpu.set_one_reg(register, value)
    except KvmError:
        return False
    return True


tried, surprises = 0, []
with System.open() as system, system.create_vm() as vm, Gic(vm, 1), vm.create_vcpu(0) as vcpu:
    ProcessorModel(vm).initialise(vcpu, powered_off=False)
    masks = vm.id_register_masks() or [0] * 192
    for name, register in id_registers().items():
        try:
            limit = vcpu.get_one_reg(register.id)
        except KvmError:
            continue
        if name in FREE:
            continue
        for value in candidates(register, limit):
            refused = register.refused(value, limit, masks[register.index])
            tried += 1
            if takes(vcpu, register.id, value) is not (refused == 0):
                surprises.append([name, hex(limit), hex(value), register.names(value ^ limit)])
            takes(vcpu, register.id, limit)
json.dump({"tried": tried, "surprises": surprises}, sys.stdout)
