"""Run in a lab host: use the emulated GPU's regions through VFIO, with nvgrace-gpu; print JSON.

Usage: vfio_gpu.py BACKEND
"""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.arm64 import registers
from vmm.errors import VmmError
from vmm.kvm.exits import MmioWrite
from vmm.kvm.system import System
from vmm.memory import Mapping, Region
from vmm.vfio.backend import Backend
from vmm.vfio.device import VfioDevice, open_device

if TYPE_CHECKING:
    from vmm.vfio.mapping import RegionMapping

CODE = 0x4000_0000
OUTSIDE = 0x0900_0000
IPA = 0x1_0000_0000
PROGRAM = struct.pack("<3I", 0xF9400002, 0xF9000022, 0x14000000)
"""ldr x2, [x0]; str x2, [x1]; b ."""

PATTERN = bytes(range(256)) * 16
FAR = 0x123_4000


def look(device: VfioDevice) -> dict[str, Any]:
    """Return each region's properties, and whether its mapping agrees with read and write."""
    found: dict[str, Any] = {}
    for region in device.regions:
        one: dict[str, Any] = {"size": region.size, "name": region.info.name}
        one["areas"] = [(area.base, area.size) for area in region.info.areas]
        found[str(region.index)] = one
        if not region.info.mappable:
            continue
        with region.map() as mapping:
            one["aligned"] = mapping.host_address % mapping.size == 0
            offset = FAR if mapping.size > FAR else 0x1000
            before = region.read_bytes(offset, len(PATTERN))
            mapping.view[offset : offset + len(PATTERN)] = PATTERN
            one["written, then read"] = region.read_bytes(offset, len(PATTERN)) == PATTERN
            region.write_bytes(offset, PATTERN[::-1])
            seen = bytes(mapping.view[offset : offset + len(PATTERN)])
            one["read as written"] = seen == PATTERN[::-1]
            region.write_bytes(offset, before)
        with region.map(0x1000, 0x2000) as part:
            one["part"] = tuple(part.area)
    return found


def block(system: System, mapping: RegionMapping, ipa: int) -> str:
    """Return the size of the block that a guest's first access to *mapping* at *ipa* gets."""
    with (
        Mapping.anonymous(2 << 20) as memory,
        system.create_vm() as vm,
        vm.create_vcpu(0) as vcpu,
    ):
        code = Region(CODE, memory.view)
        code.view[: len(PROGRAM)] = PROGRAM
        vm.set_user_memory_region(0, 0, CODE, code.size, code.host_address)
        vm.set_user_memory_region(1, 0, ipa, mapping.size, mapping.host_address)
        vcpu.arm_vcpu_init(vm.preferred_target())
        for register, value in (
            (registers.PC, CODE),
            (registers.x(0), ipa),
            (registers.x(1), OUTSIDE),
        ):
            vcpu.set_one_reg(register, value)
        assert isinstance(vcpu.run(), MmioWrite)
        for dump in Path("/sys/kernel/debug/kvm").glob(f"{os.getpid()}-*/stage2_page_tables"):
            for line in dump.read_text().splitlines():
                if line.startswith(f"{ipa:#018x}-"):
                    return f"{line.split()[1]}{' block' if ' BLK ' in line else ''}"
    return "no dump"


def blocks(device: VfioDevice) -> dict[str, list[str]]:
    """Return the block sizes of whole regions, and of parts at an IPA of other alignment."""
    found = {}
    with System.open() as system:
        for region in device.regions:
            if region.info.mappable and region.size > 4 << 20:
                with region.map() as whole, region.map(4096, 4 << 20) as part:
                    answers = [block(system, whole, IPA), block(system, part, IPA)]
                found[str(region.index)] = answers
    return found


def main() -> None:
    """Print it."""
    (path,) = Path("/sys/bus/pci/drivers/nvgrace_gpu_vfio_pci").glob("0000:*")
    with open_device(path.name, backend=Backend(sys.argv[1])) as device:
        device.enable_memory()
        found = {"driver": device.driver, "memory": device.memory_enabled, "regions": look(device)}
        found["blocks"] = blocks(device)
        try:
            device.region(4).map(512 << 20, 4096)
        except VmmError as error:
            found["past"] = str(error)
    json.dump(found, sys.stdout)


main()
