"""A manifest for tests, of a machine with a golden host's CPU."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from tests.state.golden import golden
from vmm.arm64.gic_state import GicState
from vmm.arm64.vcpu_state import VcpuState
from vmm.config import MachineConfig
from vmm.config.disk import DiskConfig
from vmm.devices.pl011 import REGISTERS, Pl011State
from vmm.devices.pl031 import Pl031State
from vmm.devices.pl061 import RESET, Pl061State
from vmm.machine.snapshot import describe
from vmm.state import manifest
from vmm.state.machine_state import MachineState
from vmm.state.manifest import DiskFile, MadeBy, Manifest, MemoryFile
from vmm.virtio.state import DeviceState, MmioState, QueueState, RingState, SelectorState

SIZE = 2 << 20

DEVICE = DeviceState(
    device_id=2,
    status=15,
    accepted=1 << 32,
    generation=0,
    queues=(QueueState(256, 0x4000_0000, 0x4000_1000, 0x4000_2000, RingState(5, 5, 1, 1)),),
    own=None,
)
STATE = MachineState(
    vcpus=(VcpuState("runnable", {"serror_pending": 0}, {"pc": 0x4008_0000, "Z0": 1 << 2000}),),
    gic=GicState(3, {"distributor": {"GICD_CTLR": 0x52}, "cpu0": {"GICR_CTLR": 1}}),
    uart=Pl011State(dict.fromkeys(REGISTERS.values(), 0), (0x61,), 0, 0, overrun=False, sent=True),
    rtc=Pl031State(0, 0, 0, 0, 0, None),
    gpio=Pl061State({**RESET.registers, "GPIOIE": 8}),
    vmgenid=bytes(range(16)),
    mmio=(MmioState(DEVICE, SelectorState(0, 1, 0), 1),),
    pci=(),
)


def make(
    directory: Path, disk: Path | None = None, config: MachineConfig | None = None
) -> Manifest:
    """Write a snapshot of *SIZE* bytes of zeroes into *directory*; return its manifest."""
    directory.mkdir()
    with (directory / "memory.1").open("wb") as file:
        file.truncate(SIZE)
    config = MachineConfig(image=Path("/guest.img"), memory=SIZE)
    disks: tuple[DiskFile, ...] = ()
    if disk is not None:
        config = replace(config, disks=(DiskConfig(disk),))
        found = disk.stat()
        disks = (DiskFile(str(disk), found.st_size, found.st_mtime_ns),)
    made = Manifest(
        MadeBy("pyvmm", "7.3", "2026-11-28T12:00:00Z"),
        golden("fwb").cpu,
        describe(config).configuration,
        disks,
        MemoryFile("memory.1", 0x4000_0000, SIZE, 0, hashlib.sha256().hexdigest()),
        STATE,
    )
    (directory / manifest.NAME).write_text(manifest.text(made))
    return made
