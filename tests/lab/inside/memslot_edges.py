"""Run in a lab host: change memory slots in use, and the mappings under them; print JSON.

`pyvmm lab matrix` measures which slots can be created.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys
from contextlib import contextmanager, suppress
from errno import errorcode
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.arm64 import registers
from vmm.coherence.udmabuf import CREATE, NODE
from vmm.kvm.capability import Cap
from vmm.kvm.exits import MmioWrite
from vmm.kvm.fd import KvmError
from vmm.kvm.system import System
from vmm.kvm.vm import MemFlag, Vm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.kvm.vcpu import Vcpu

IPA = 0x1_0000_0000
CODE = 0x4000_0000
OUTSIDE = 0x0900_0000
SIZE = 2 << 20
ANONYMOUS = (-1, 0)
MAP_HUGETLB = 0x40000
PROGRAM = struct.pack("<4I", 0xF9000001, 0xF9400001, 0xF9000041, 0x14000000)
"""str x1, [x0]; ldr x1, [x0]; str x1, [x2]; b ."""


def vfio(number: int) -> int:
    """_IO(';', 100 + number), as in <linux/vfio.h>."""
    return ord(";") << 8 | 100 + number


def open_gpu() -> int:
    """Return the GPU's descriptor, through its group, with memory enabled."""
    (device,) = Path("/sys/bus/pci/drivers/nvgrace_gpu_vfio_pci").glob("0000:*")
    number = (device / "iommu_group").resolve().name
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
    fcntl.ioctl(group, vfio(4), struct.pack("i", container))
    fcntl.ioctl(container, vfio(2), 3)
    # A bytearray, because with bytes ioctl() returns those instead of the descriptor.
    gpu: int = fcntl.ioctl(group, vfio(6), bytearray(device.name.encode() + b"\0"))
    _, config = region(gpu, 7)
    command = int.from_bytes(os.pread(gpu, 2, config + 4), "little")
    os.pwrite(gpu, (command | 2).to_bytes(2, "little"), config + 4)
    return gpu


def region(gpu: int, index: int) -> tuple[int, int]:
    """Return a region's size and offset in bytes."""
    info = bytearray(struct.pack("=4I2Q", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(gpu, vfio(8), info)
    size, offset = struct.unpack_from("=2Q", info, 16)
    return size, offset


def register(vm: Vm, slot: int, flags: int, ipa: int, memory: mmap.mmap) -> str:
    """Return "ok", or the error's name."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    try:
        vm.set_user_memory_region(slot, flags, ipa, len(memory), address)
    except KvmError as error:
        return errorcode[error.errno]
    return "ok"


@contextmanager
def touching_vcpu(system: System, flags: int, memory: mmap.mmap) -> Iterator[tuple[Vm, Vcpu]]:
    """Yield a VM with *memory* as slot 1, and a vCPU that will touch it once and tell."""
    code = mmap.mmap(-1, SIZE)
    code[: len(PROGRAM)] = PROGRAM
    with system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        assert register(vm, 0, 0, CODE, code) == "ok"
        assert register(vm, 1, flags, IPA, memory) == "ok"
        vcpu.arm_vcpu_init(vm.preferred_target())
        for id_, value in ((registers.PC, CODE), (registers.x(0), IPA), (registers.x(2), OUTSIDE)):
            vcpu.set_one_reg(id_, value)
        yield vm, vcpu


def run(vcpu: Vcpu) -> str:
    """Return "ok" if the guest got to its store to the outside, or the error's name."""
    try:
        done = vcpu.run()
    except KvmError as error:
        return errorcode[error.errno]
    return "ok" if isinstance(done, MmioWrite) else str(done)


def map_over(memory: mmap.mmap, file: int, offset: int) -> None:
    """Replace what is mapped at *memory*: mmap(MAP_FIXED)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    access = mmap.PROT_READ | mmap.PROT_WRITE
    fixed = mmap.MAP_SHARED | 0x10
    got = libc.mmap(at, ctypes.c_size_t(SIZE), access, fixed, file, ctypes.c_long(offset))
    assert got == at.value


def udmabuf() -> int:
    """Return the descriptor of memory that its driver maps cacheable, as VM_PFNMAP."""
    memfd = os.memfd_create("edges", os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, SIZE)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    made: int = fcntl.ioctl(
        os.open(NODE, os.O_RDWR), CREATE, bytearray(struct.pack("IIQQ", memfd, 0, 0, SIZE))
    )
    return made


def uncached_ram(ours: mmap.mmap) -> tuple[int, int]:
    """Return the descriptor and offset by which *ours*, a huge page, is mapped Normal-NC.

    /dev/mem opened with O_SYNC maps RAM so (arch/arm64/mm/mmu.c, phys_mem_access_prot).
    """
    ours[0] = 1
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(ctypes.addressof(ctypes.c_char.from_buffer(ours)) // mmap.PAGESIZE * 8)
        frame = int.from_bytes(file.read(8), "little") & (1 << 55) - 1
    assert frame
    return os.open("/dev/mem", os.O_RDWR | os.O_SYNC), frame * mmap.PAGESIZE


def edges(system: System, gpu: int) -> dict[str, str]:
    """Return the results of changing slots with the flag, where the kernel has it."""
    flag = MemFlag.WRITE_BACK
    found = {}
    ram = mmap.mmap(-1, SIZE)
    with system.create_vm() as vm:
        if register(vm, 0, flag, IPA, ram) == "ok":
            found["log dirty pages"] = register(vm, 0, flag | MemFlag.LOG_DIRTY_PAGES, IPA, ram)
            found["move"] = register(vm, 0, flag, 2 * IPA, ram)
            found["drop the flag"] = register(vm, 0, 0, 2 * IPA, ram)
    Path("/proc/sys/vm/nr_hugepages").write_text("1\n")
    huge = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    uncached, cached = (gpu, region(gpu, 0)[1]), (gpu, region(gpu, 4)[1])
    buffer, uncached_pages = (udmabuf(), 0), uncached_ram(huge)
    for name, first, then, flags in (
        ("uncached over cached, flag", cached, uncached, flag),
        ("cached over uncached, no flag", uncached, cached, MemFlag(0)),
        ("uncached over cached, no flag", cached, uncached, MemFlag(0)),
        ("udmabuf over anonymous, no flag", ANONYMOUS, buffer, MemFlag(0)),
        ("udmabuf over anonymous, flag", ANONYMOUS, buffer, flag),
        ("uncached RAM over anonymous, no flag", ANONYMOUS, uncached_pages, MemFlag(0)),
        ("uncached RAM over anonymous, flag", ANONYMOUS, uncached_pages, flag),
    ):
        memory = mmap.mmap(first[0], SIZE, mmap.MAP_SHARED, offset=first[1])
        with suppress(AssertionError), touching_vcpu(system, flags, memory) as (_, vcpu):
            map_over(memory, *then)
            found[name] = run(vcpu)
    return found


def main() -> None:
    """Print the capability's values and the results of the changes."""
    capability = Cap.ARM_CACHEABLE_PFNMAP_SUPPORTED
    gpu = open_gpu()
    with System.open() as system:
        try:
            on_device = str(system.check_extension(capability))
        except KvmError as error:
            on_device = errorcode[error.errno]
        with system.create_vm() as vm:
            on_vm = vm.check_extension(capability)
        answers = {"/dev/kvm": on_device, "vm": on_vm}
        json.dump({"243": answers, "edges": edges(system, gpu)}, sys.stdout)


main()
