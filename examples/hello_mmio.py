"""Hello, world: a guest of nine instructions on bare vmm.kvm.

On an arm64 host with KVM, or in the lab: pyvmm lab exec fwb -- python3 examples/hello_mmio.py
"""

import os
import struct

from vmm._native import lib
from vmm.arm64 import registers
from vmm.errors import VmmError
from vmm.kvm.exits import MmioWrite, SystemEvent
from vmm.kvm.slots import MemorySlots
from vmm.kvm.system import System
from vmm.memory import Mapping, Region

RAM, RAM_SIZE, OUTPUT = 0x4000_0000, 0x1_0000, 0x0900_0000

CODE = struct.pack(
    "<9I",
    0xD2A12001,  # movz  x1, #0x900, lsl #16     the address that is our output
    0x10000102,  # adr   x2, text
    0x38401440,  # ldrb  w0, [x2], #1
    0x34000060,  # cbz   w0, off
    0x39000020,  # strb  w0, [x1]                no memory there: an exit to us
    0x17FFFFFD,  # b     -3
    0xD2B08000,  # movz  x0, #0x8400, lsl #16
    0xF2800100,  # movk  x0, #0x8                PSCI SYSTEM_OFF
    0xD4000002,  # hvc   #0
)

try:
    with System.open() as kvm, Mapping.anonymous(RAM_SIZE) as ram, kvm.create_vm() as vm:
        ram.view[: len(CODE)] = CODE
        text = b"Hello from EL1!\n\0"
        ram.view[len(CODE) : len(CODE) + len(text)] = text

        slots, region = MemorySlots(vm), Region(RAM, ram.view)
        slot = slots.add(region.base, region.size, region.host_address)

        with vm.create_vcpu(0) as vcpu:
            init = vm.preferred_target()
            init.features[0] = 1 << lib.KVM_ARM_VCPU_PSCI_0_2  # or SYSTEM_OFF is not for us
            vcpu.arm_vcpu_init(init)
            vcpu.set_one_reg(registers.PC, RAM)

            while True:
                match vcpu.run():
                    case MmioWrite(address, 1, byte) if address == OUTPUT:
                        os.write(1, bytes([byte]))
                    case SystemEvent():
                        break
                    case other:
                        raise SystemExit(f"unexpected: {other}")

        slots.remove(slot)  # before its memory is unmapped
except (VmmError, OSError) as error:
    raise SystemExit(f"failed: {error}") from None
