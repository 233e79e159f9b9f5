"""Guests of a few instructions, in machine code, for x86-64 (real mode) and arm64.

They do what the tests of vmm.kvm need and nothing else: store to and load from an address
without memory, touch pages of memory, spin.
"""

from __future__ import annotations

import mmap
import platform
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vmm.arm64 import registers
from vmm.kvm.slots import MemorySlots
from vmm.memory import Mapping, Region

if TYPE_CHECKING:
    from contextlib import ExitStack

    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm

PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Store:
    """Store one byte, or two, or four, to the device."""

    offset: int
    value: int
    size: int = 1


@dataclass(frozen=True)
class Echo:
    """Load a byte, or four, from the device at *source* and store the value at *target*."""

    source: int
    target: int
    size: int = 1


@dataclass(frozen=True)
class Touch:
    """Store a 1 to the first byte of page *page* (the host's size) of the data slot."""

    page: int


@dataclass(frozen=True)
class Again:
    """Go back to the first instruction."""


@dataclass(frozen=True)
class Spin:
    """Stay here."""


Op = Store | Echo | Touch | Again | Spin


class Arch(Protocol):
    code: int
    code_size: int
    data: int
    device: int

    def assemble(self, program: list[Op]) -> bytes: ...
    def point(self, vm: Vm, vcpu: Vcpu) -> None: ...


class X86:
    """At reset a vCPU is in real mode, CS base 0xffff0000, IP 0xfff0, DS 0."""

    code = 0xFFFF_0000
    code_size = 0x1_0000
    data = 0x8000
    device = 0x1000

    def assemble(self, program: list[Op]) -> bytes:
        out = bytearray()
        for op in program:
            match op:
                case Store(offset, value, 1):
                    out += b"\xc6\x06" + struct.pack("<HB", self.device + offset, value)
                case Store(offset, value, 2):
                    out += b"\xc7\x06" + struct.pack("<HH", self.device + offset, value)
                case Store(offset, value):
                    out += b"\x66\xc7\x06" + struct.pack("<HI", self.device + offset, value)
                case Echo(source, target, size):
                    wide = b"" if size == 1 else b"\x66"
                    load, store = (b"\xa0", b"\xa2") if size == 1 else (b"\xa1", b"\xa3")
                    out += wide + load + struct.pack("<H", self.device + source)
                    out += wide + store + struct.pack("<H", self.device + target)
                case Touch(page):
                    out += b"\xc6\x06" + struct.pack("<HB", self.data + page * PAGE, 1)
                case Again():
                    out += b"\xe9" + struct.pack("<h", -len(out) - 3)
                case Spin():
                    out += b"\xeb\xfe"
        image = out.ljust(self.code_size, b"\xf4")
        image[0xFFF0:0xFFF3] = b"\xe9\x0d\x00"  # to offset 0
        return bytes(image)

    def point(self, vm: Vm, vcpu: Vcpu) -> None:
        pass


class Arm64:
    code = 0x4000_0000
    code_size = 0x1_0000
    data = 0x5000_0000
    device = 0x0900_0000

    def assemble(self, program: list[Op]) -> bytes:
        words = [0xD2A12001, 0xD2AA0002]  # movz x1, #device; movz x2, #data
        for op in program:
            match op:
                case Store(offset, value, 1):
                    # movz w0, #value; strb w0, [x1, #offset]
                    words += [0x52800000 | value << 5, 0x39000020 | offset << 10]
                case Store(offset, value, 2):
                    # movz w0, #value; strh w0, [x1, #offset]
                    words += [0x52800000 | value << 5, 0x79000020 | offset // 2 << 10]
                case Store(offset, value):
                    # movz w0, #value; str w0, [x1, #offset]
                    words += [0x52800000 | value << 5, 0xB9000020 | offset // 4 << 10]
                case Echo(source, target, 1):
                    # ldrb w0, [x1, #source]; strb w0, [x1, #target]
                    words += [0x39400020 | source << 10, 0x39000020 | target << 10]
                case Echo(source, target):
                    # ldr w0, [x1, #source]; str w0, [x1, #target]
                    words += [0xB9400020 | source // 4 << 10, 0xB9000020 | target // 4 << 10]
                case Touch(page):  # add x3, x2, #offset, lsl 12; movz w0, #1; strb w0, [x3]
                    words += [0x91400043 | page * PAGE >> 12 << 10, 0x52800020, 0x39000060]
                case Again():
                    words += [0x14000000 | (2 - len(words)) & 0x3FFFFFF]
                case Spin():
                    words += [0x14000000]
        return struct.pack(f"<{len(words)}I", *words)

    def point(self, vm: Vm, vcpu: Vcpu) -> None:
        vcpu.arm_vcpu_init(vm.preferred_target())
        vcpu.set_one_reg(registers.PC, self.code)


ARCH: Arch = Arm64() if platform.machine() == "aarch64" else X86()
CODE, DATA, DEVICE = ARCH.code, ARCH.data, ARCH.device
DATA_PAGES = 4


@dataclass
class Tiny:
    """A VM with one vCPU at the start of a program, code in slot 0 and data in slot 1."""

    vm: Vm
    vcpu: Vcpu
    slots: MemorySlots
    data: Mapping


def build(vm: Vm, program: list[Op], owned: ExitStack, data_flags: int = 0) -> Tiny:
    code = owned.enter_context(Mapping.anonymous(ARCH.code_size))
    data = owned.enter_context(Mapping.anonymous(DATA_PAGES * PAGE))
    image = ARCH.assemble(program)
    code.view[: len(image)] = image
    slots = MemorySlots(vm)
    for base, mapping, flags in ((CODE, code, 0), (DATA, data, data_flags)):
        region = Region(base, mapping.view)
        slot = slots.add(region.base, region.size, region.host_address, flags)
        owned.callback(slots.remove, slot)
    vcpu = owned.enter_context(vm.create_vcpu(0))
    ARCH.point(vm, vcpu)
    return Tiny(vm, vcpu, slots, data)
