"""Write a paused machine into a directory: ``--snapshot``.

    pause -> GIC (its tables go into guest memory) -> vCPUs, devices -> memory -> manifest -> resume

What cannot be collected is refused before the guest runs. The directory is opened then, too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.arm64 import gic_state, processor, vcpu_state
from vmm.config import codec
from vmm.errors import UserError, host_errors
from vmm.state import manifest, memory_file
from vmm.state.baseline import Baseline
from vmm.state.directory import SnapshotDirectory
from vmm.state.host_description import look
from vmm.state.machine_state import MachineState
from vmm.state.manifest import DiskFile, MadeBy, Manifest, MemoryFile
from vmm.virtio.block.device import Blk

if TYPE_CHECKING:
    from collections.abc import Generator

    from vmm.coherence.ledger import Ledger
    from vmm.config import MachineConfig
    from vmm.config.snapshot import SnapshotConfig
    from vmm.devices.pl011 import Pl011
    from vmm.devices.pl031 import Pl031
    from vmm.devices.pl061 import Pl061
    from vmm.kvm.system import System
    from vmm.machine.power_cycle import PowerCycle
    from vmm.machine.virtio_devices import VirtioDevices
    from vmm.machine.vmgenid import VmGenId
    from vmm.memory import Region
    from vmm.state.visible_cpu import VisibleCpu

OPTION: Final = "--snapshot"

OF_A_RUN: Final = (
    "snapshot",
    "restore",
    "incoming",
    "memory_dump",
    "gdb",
    "watchdog",
    "control",
)
"""What of a configuration belongs to one run: it is not saved, and the next run brings its own."""


class Parts(NamedTuple):
    """What a machine consists of, besides its power cycle."""

    uart: Pl011
    rtc: Pl031
    gpio: Pl061
    vmgenid: VmGenId
    virtio: VirtioDevices | None


class Taken(NamedTuple):
    """A snapshot that was written: bytes of memory, bytes that were maintained, and seconds."""

    stored: int
    maintained: int
    seconds: float


def refusals(config: MachineConfig) -> list[tuple[str, str]]:
    """Return what in *config* cannot be saved, besides virtio devices: the option, and why."""
    wrong = []
    if config.vfio:
        wrong.append(("--vfio", "a device of the host keeps its state to itself"))
    if config.bars:
        wrong.append(("--bar", "device memory is not part of the machine"))
    if config.firmware is not None or config.flash is not None:
        wrong.append(("--firmware and --flash", "the state of flash cannot be collected yet"))
    if config.command is not None:
        wrong.append(("COMMAND", "it ends with the process that asked for it"))
    return wrong


def check(config: MachineConfig, devices: VirtioDevices | None, option: str = OPTION) -> None:
    """Raise `UserError`, of *option*, if the machine has something that cannot be saved."""
    wrong = refusals(config)
    for device in () if devices is None else devices.devices:
        if device.unmovable:
            wrong.append((device.name, device.unmovable))
    if wrong:
        what, why = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{option}: {what}: {why}{more}", "leave one of the two out")


class Snapshots:
    """The directory of ``--snapshot``. Raises `UserError` and `HostError`."""

    def __init__(self, asked: SnapshotConfig, config: MachineConfig, system: System) -> None:
        self.ends = asked.end
        """Whether the machine ends after a snapshot."""
        self._described = describe(config)
        self._cpu = shown(config, system)
        self._directory = SnapshotDirectory(asked.path)
        self._made_by = _made_by()
        self._writing = False

    def take(
        self, cycle: PowerCycle, parts: Parts, ram: Region, ledger: Ledger, counter: int | None
    ) -> Generator[None, None, Taken]:
        """Write the machine, which is paused since its virtual counter was *counter*, in parts.

        The first part collects its state, the others write memory. Raises `UserError` while
        another snapshot is written, and `HostError`; the snapshot before is whole then.
        """
        if self._writing:
            raise UserError(f"{OPTION}: another snapshot is being written", "wait for its end")
        self._writing = True
        try:
            return (yield from self._take(cycle, parts, ram, ledger, counter))
        finally:
            self._writing = False

    def _take(
        self, cycle: PowerCycle, parts: Parts, ram: Region, ledger: Ledger, counter: int | None
    ) -> Generator[None, None, Taken]:
        began = time.monotonic()
        state = collect(cycle, parts, counter)
        with host_errors(OPTION):
            files = settle(self._described, parts.virtio)
        with self._directory.replace() as (name, fd, commit):
            written = yield from memory_file.write(fd, ram, ledger)
            memory = MemoryFile(name, ram.base, ram.size, written.stored, written.sha256)
            made_by, plain = replace(self._made_by, time=_now()), self._described.configuration
            text = manifest.text(Manifest(made_by, self._cpu, plain, files, memory, state))
            commit(text)
        return Taken(written.stored, written.maintained, time.monotonic() - began)


def shown(config: MachineConfig, system: System) -> VisibleCpu:
    """Return what the guest sees of the CPU. Raises `HostError` and `UserError`."""
    if config.cpu_baseline is not None:
        return Baseline.read(config.cpu_baseline).cpu
    with system.create_vm() as vm:
        return look(vm, system.ipa_bits())[0]


def collect(cycle: PowerCycle, parts: Parts, counter: int | None) -> MachineState:
    """Return the state of a paused machine; GIC tables go into guest memory. Raises `HostError`.

    KVM's counter has gone on since the pause: the guest's time is *counter*.
    """
    mpidrs = [processor.affinity(vcpu) for vcpu in cycle.vcpus]
    gic = gic_state.collect(cycle.gic, mpidrs)
    mmio, pci = ((), ()) if parts.virtio is None else parts.virtio.state()
    return MachineState(
        vcpus=tuple(vcpu_state.collect(vcpu, counter) for vcpu in cycle.vcpus),
        gic=gic,
        uart=parts.uart.state(),
        rtc=parts.rtc.state(),
        gpio=parts.gpio.state(),
        vmgenid=parts.vmgenid.state(),
        mmio=mmio,
        pci=pci,
    )


class Described(NamedTuple):
    """A machine's configuration as JSON values, and its disks' paths. All paths are absolute.

    Made before the process is sealed, which asks for its working directory.
    """

    configuration: object
    disks: tuple[str, ...]


def describe(config: MachineConfig) -> Described:
    """Return *config* without what belongs to one run."""
    plain = replace(config, verify=False, **dict.fromkeys(OF_A_RUN))  # type: ignore[arg-type]
    text = codec.dumps({"config": plain}, lambda path: path.absolute())
    return Described(json.loads(text), tuple(str(disk.path.absolute()) for disk in config.disks))


def disks(devices: VirtioDevices | None) -> list[Blk]:
    """Return the disks among *devices*, in order."""
    return [each for each in (() if devices is None else devices.devices) if isinstance(each, Blk)]


def settle(described: Described, devices: VirtioDevices | None) -> tuple[DiskFile, ...]:
    """Make the disks durable, and return what they are. Raises OSError."""
    facts = [disk.settle() for disk in disks(devices)]
    return tuple(
        DiskFile(path, fact.st_size, fact.st_mtime_ns)
        for path, fact in zip(described.disks, facts, strict=True)
    )


def _made_by() -> MadeBy:
    from importlib.metadata import PackageNotFoundError, version

    try:
        program = f"pyvmm {version('pyvmm-arm64')}"
    except PackageNotFoundError:
        program = "pyvmm"
    return MadeBy(program, os.uname().release, _now())


def _now() -> str:
    """Return the time, in UTC. strftime(3) would read the host's time zone."""
    year, month, day, hour, minute, second = time.gmtime()[:6]
    return f"{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
