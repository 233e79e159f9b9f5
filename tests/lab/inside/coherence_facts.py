"""Run in a lab host with the GPU: print what a verdict leaves behind, and faults, as JSON.

python3 - BDF FACT...
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.coherence.bisect import bisect
from vmm.coherence.explain import RequestedSlot
from vmm.coherence.prove import prove
from vmm.config import MachineConfig
from vmm.config.bar import BarConfig
from vmm.errors import HostError
from vmm.events import Events
from vmm.kvm.system import System
from vmm.kvm.vm import Vm
from vmm.loop import Loop
from vmm.machine.address_space import AddressSpace
from vmm.machine.machine import Machine
from vmm.memory import Mapping
from vmm.passthrough.region_memory import RegionContents
from vmm.vfio.config import COMMAND_MEMORY
from vmm.vfio.device import open_device

if TYPE_CHECKING:
    from vmm.coherence.verdict import Verdict
    from vmm.vfio.region import VfioRegion

BDF = sys.argv[1]
BAR_AT = 0x1_0000_0000
READ_FOR_EVER = struct.pack("<3I", 0xD2C00020, 0xF9400001, 0x17FFFFFF)
"""mov x0, #0x100000000; ldr x1, [x0]; b .-4"""


def told(verdict: Verdict) -> list[str]:
    return [verdict.memory_type.value, *verdict.evidence]


def write_and_prove(system: System, region: VfioRegion) -> dict[str, object]:
    """Prove a region with all probes that write, whether KVM takes it for memory or not."""
    before = os.urandom(8192)
    region.write_bytes(0, before)
    with region.map() as mapping:
        contents = RegionContents(region, 0)
        verdict = prove(system, mapping.host_address, mapping.size, contents=contents)
    return {"verdict": told(verdict), "kept": region.read_bytes(0, 8192) == before}


def verdicts() -> dict[str, object]:
    """Return verdicts with the device's memory on and off, and what they leave behind."""
    with System.open() as system, open_device(BDF) as device:
        device.enable_memory()
        found: dict[str, object] = {
            f"region {index}": write_and_prove(system, device.region(index)) for index in (2, 4)
        }
        with device.region(0).map() as mapping:
            where = (system, mapping.host_address, mapping.size)
            device.config.clear_command(COMMAND_MEMORY)
            found["memory off"] = told(prove(*where))
            device.enable_memory()
            found["memory on"] = told(prove(*where))
    left = Path("/sys/kernel/debug/kvm").glob(f"{os.getpid()}-*")
    return {**found, "left": [path.name for path in left]}


def switched_off() -> str:
    """Return the end of a machine whose guest reads device memory that is switched off."""
    with tempfile.NamedTemporaryFile() as image:
        Path(image.name).write_bytes(READ_FOR_EVER)
        config = MachineConfig(image=Path(image.name), bars=(BarConfig(BDF, 0, BAR_AT),))
        with Loop() as loop, Machine(config, loop, Events(None)) as machine:
            (bar,) = machine.space._devices
            loop.call_later(1.0, lambda: bar.device.config.clear_command(COMMAND_MEMORY))
            try:
                return str(machine.run())
            except HostError as error:
                return str(error)


def slots_of_a_refusal() -> dict[str, object]:
    """Return the memory slots that existed when a machine with region 4 was refused."""
    sizes = []
    register = Vm.set_user_memory_region

    def recorded(vm: Vm, *where: int) -> None:
        sizes.append(where[3])
        register(vm, *where)

    Vm.set_user_memory_region = recorded  # type: ignore[assignment,method-assign]
    config = MachineConfig(image=Path(), bars=(BarConfig(BDF, 4, cache="require"),))
    said = ""
    try:
        with System.open() as system, AddressSpace(config, system):
            pass
    except HostError as error:
        said = str(error)
    finally:
        Vm.set_user_memory_region = register  # type: ignore[method-assign]
    return {"said": said, "largest": max(sizes)}


def bisected() -> dict[str, object]:
    """Return why slots of region 4 are refused: of it alone, and behind 5 pages of RAM."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with System.open() as system, open_device(BDF) as device:
        device.enable_memory()
        region = device.region(4)
        with region.map() as mapping, Mapping.anonymous(16 * page) as plain:
            alone = RequestedSlot(None, 0, BAR_AT, mapping.size, mapping.host_address)
            base = plain.region(0).host_address
            shared, fixed = 1, 0x10
            where, offset = base + 5 * page, region.info.offset
            fd = device._open_fd.fileno()
            assert libc.mmap(where, 11 * page, 3, shared | fixed, fd, offset) == where
            mixed = RequestedSlot(None, 0, BAR_AT, 16 * page, base)
            causes = {"alone": bisect(system, alone), "mixed": bisect(system, mixed)}
    return {name: cause and cause.what for name, cause in causes.items()}


def main() -> None:
    """Print the facts that the arguments name."""
    facts = {
        "verdicts": verdicts,
        "switched off": switched_off,
        "refusal": slots_of_a_refusal,
        "bisected": bisected,
    }
    json.dump({name: facts[name]() for name in sys.argv[2:]}, sys.stdout)


main()
