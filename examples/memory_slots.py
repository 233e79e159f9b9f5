"""Memory slots: the guest sees the VMM's memory wherever a slot puts it, twice if there are two.

    pyvmm lab exec fwb -- python3 examples/memory_slots.py

One page of ours is at two guest addresses, and at a third it is read-only: a store there does not
reach memory, it is an exit. A slot costs no copy: we see the guest's store in our own page.
"""

import struct

import vmm
from vmm._native import lib
from vmm.arm64 import registers
from vmm.kvm.exits import MmioWrite, SystemEvent
from vmm.kvm.slots import MemorySlots
from vmm.kvm.system import System
from vmm.memory import Mapping

ONE, TWO, READ_ONLY, SIZE = 0x4000_0000, 0x5000_0000, 0x6000_0000, 0x1_0000

CODE = struct.pack(
    "<10I",
    0xD2AA0001,  # movz  x1, #0x5000, lsl #16
    0xB9410020,  # ldr   w0, [x1, #0x100]        by the second address
    0x11000400,  # add   w0, w0, #1
    0xD2A80002,  # movz  x2, #0x4000, lsl #16
    0xB9010440,  # str   w0, [x2, #0x104]        by the first
    0xD2AC0003,  # movz  x3, #0x6000, lsl #16
    0xB9010860,  # str   w0, [x3, #0x108]        by the third: an exit
    0xD2B08000,  # movz  x0, #0x8400, lsl #16
    0xF2800100,  # movk  x0, #0x8                PSCI SYSTEM_OFF
    0xD4000002,  # hvc   #0
)

with vmm.program(), System.open() as kvm, Mapping.anonymous(SIZE) as page, kvm.create_vm() as vm:
    page.view[: len(CODE)] = CODE
    page.view[0x100:0x104] = (41).to_bytes(4, "little")
    slots, host = MemorySlots(vm), page.region(ONE).host_address
    made = [slots.add(address, SIZE, host) for address in (ONE, TWO)]
    made.append(slots.add(READ_ONLY, SIZE, host, lib.KVM_MEM_READONLY))
    print(*made, sep="\n")
    with vm.create_vcpu(0) as vcpu:
        init = vm.preferred_target()
        init.features[0] = 1 << lib.KVM_ARM_VCPU_PSCI_0_2
        vcpu.arm_vcpu_init(init)
        vcpu.set_one_reg(registers.PC, ONE)
        while not isinstance(exit_ := vcpu.run(), SystemEvent):
            assert isinstance(exit_, MmioWrite), exit_
            print(f"refused: a store of {exit_.value} to {exit_.address:#x}")
    print("the guest left us", int.from_bytes(page.view[0x104:0x108], "little"))
    print("and did not reach", int.from_bytes(page.view[0x108:0x10C], "little"))
    for slot in made:
        slots.remove(slot)  # before its memory is unmapped
