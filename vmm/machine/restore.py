"""Go on from a snapshot: ``--restore``.

    manifest -> the machine's parts, as at the start -> memory mapped -> VM: GIC, vCPUs, devices

Memory is not read but mapped, so the time to the first instruction does not grow with RAM.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmm import sigbus
from vmm.arm64 import gic_state, processor, vcpu_state
from vmm.closeable import Closeable
from vmm.config import MachineConfig, codec
from vmm.config.disk import DiskConfig
from vmm.errors import HostError, UserError
from vmm.image_lock import lock_image
from vmm.machine.snapshot import OF_A_RUN
from vmm.state import manifest, memory_file
from vmm.state.comparison import refused
from vmm.state.host_description import look

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm.kvm.system import System
    from vmm.machine.address_space import AddressSpace
    from vmm.machine.power_cycle import PowerCycle
    from vmm.machine.snapshot import Parts
    from vmm.state.machine_state import MachineState
    from vmm.state.visible_cpu import VisibleCpu

OPTION: Final = "--restore"


def configuration(where: str, machine: object, memory: int) -> MachineConfig:
    """Return the configuration in *machine*, with *memory* bytes of RAM. Raises `UserError`."""
    found, wrong = None, "there is no configuration"
    try:
        found = codec.loads(json.dumps(machine)).get("config")
    except UserError as error:
        wrong = error.message
    if not isinstance(found, MachineConfig) or found.memory != memory:
        raise UserError(
            f"{where}: machine: {wrong}, or not with this memory.size", "use another snapshot"
        )
    return found


def with_run(found: MachineConfig, asked: MachineConfig) -> MachineConfig:
    """Return the saved configuration *found* with what belongs to this run of *asked*."""
    names = (*OF_A_RUN, "sandbox", "cgroup")
    return replace(found, **{name: getattr(asked, name) for name in names})


def check_cpu(what: str, system: System, cpu: VisibleCpu, remedy: str) -> VisibleCpu:
    """Return what this host shows of its CPU. Raises `HostError` if it cannot show *cpu*."""
    with system.create_vm() as vm:
        there, changes = look(vm, system.ipa_bits())
    reasons = refused(there, changes, cpu)
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise HostError(
            f"{what}: this host cannot show what the guest has seen: {reasons[0]}{more}", remedy
        )
    return there


def put_in_place(what: str, state: MachineState, cycle: PowerCycle, parts: Parts) -> None:
    """Give *cycle*, whose parts are connected, and *parts* the *state* of *what*.

    Neither virtio devices nor vCPUs go on yet. Raises `HostError` and `UserError`.
    """
    if len(state.vcpus) != len(cycle.vcpus):
        raise HostError(f"{what}: state.vcpus: the machine has {len(cycle.vcpus)}")
    mpidrs = [processor.affinity(vcpu) for vcpu in cycle.vcpus]
    gic_state.restore(cycle.gic, mpidrs, state.gic)
    for vcpu, saved in zip(cycle.vcpus, state.vcpus, strict=True):
        vcpu_state.restore(vcpu, saved)
    try:
        parts.uart.restore(state.uart)
        parts.gpio.restore(state.gpio)
    except ValueError as error:
        raise HostError(f"{what}: state.uart or state.gpio: {error}") from error
    parts.rtc.restore(state.rtc)
    if parts.virtio is not None:
        parts.virtio.restore(state.mmio, state.pci)
    elif state.mmio or state.pci:
        raise HostError(f"{what}: state.mmio: the machine has no virtio devices")
    vcpu_state.restore_counters(cycle.vcpus[0], state.vcpus[0])


class Restore(Closeable):
    """Own the snapshot in *directory*. Raises `UserError`, which names the member at fault."""

    def __init__(self, directory: Path) -> None:
        self._what = f"{OPTION} {directory}"
        self._watched: sigbus.Watched | None = None
        self._fd = -1
        self._manifest = found = manifest.read(directory)
        try:
            self._fd = os.open(directory / found.memory.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{self._what}: {found.memory.file}: {error.strerror}") from error
        try:
            lock_image(self._fd, self._what, read_only=True)
            self._check_size()
        except BaseException:
            self.close()
            raise

    def _check_size(self) -> None:
        memory, size = self._manifest.memory, os.fstat(self._fd).st_size
        if size != memory.size:
            raise UserError(
                f"{self._what}: {memory.file} has {size} bytes, where the manifest's memory.size "
                f"is {memory.size}",
                "use another snapshot",
            )

    @property
    def cpu(self) -> VisibleCpu:
        """What the guest has seen of the CPU."""
        return self._manifest.cpu

    @property
    def made_by(self) -> manifest.MadeBy:
        """Who made the snapshot."""
        return self._manifest.made_by

    def config(self, asked: MachineConfig) -> MachineConfig:
        """Return the configuration of the saved machine, with what belongs to this run of *asked*.

        Raises `UserError`: it is none, or a disk has changed since.
        """
        where = f"{self._what}: {manifest.NAME}"
        found = configuration(where, self._manifest.machine, self._manifest.memory.size)
        if asked.disks:
            found = replace(found, disks=self._copies(found.disks, asked.disks))
        if len(found.disks) != len(self._manifest.disks):
            raise UserError(
                f"{where}: disks: {len(self._manifest.disks)}, where the machine has "
                f"{len(found.disks)}",
                "use another snapshot",
            )
        for config, disk in zip(found.disks, self._manifest.disks, strict=True):
            self._check_disk(config.path, disk)
        return with_run(found, asked)

    def _copies(
        self, disks: Sequence[DiskConfig], asked: Sequence[DiskConfig]
    ) -> tuple[DiskConfig, ...]:
        """Return *disks* with the paths of *asked*. Raises `UserError`."""
        if len(asked) != len(disks):
            raise UserError(
                f"{self._what}: --disk {asked[-1].path}: {len(asked)} copies of disks, and the "
                f"snapshot has {len(disks)}",
                "name a copy of each disk, in their order, or none",
            )
        found = tuple(
            disk._replace(path=copy.path) for disk, copy in zip(disks, asked, strict=True)
        )
        for disk, copy in zip(found, asked, strict=True):
            if copy not in (disk, DiskConfig(copy.path)):
                raise UserError(
                    f"{self._what}: --disk {copy.path}: the snapshot has the disk's options",
                    "name the copy alone",
                )
        return found

    def _check_disk(self, path: Path, disk: manifest.DiskFile) -> None:
        try:
            now = path.stat()
        except OSError as error:
            raise UserError(
                f"{self._what}: its disk {path}: {error.strerror}",
                "put the disk back as it was when the snapshot was taken",
            ) from error
        if (now.st_size, now.st_mtime_ns) != (disk.size, disk.modified):
            raise UserError(
                f"{self._what}: the disk {path} was changed after the snapshot, and the guest "
                "does not know that",
                "put a copy from then there (cp --preserve), or take snapshots with then=end",
            )

    def check_host(self, system: System) -> None:
        """Raise `HostError` if this host cannot show the guest what it has seen, FWB first."""
        check_cpu(
            self._what,
            system,
            self.cpu,
            "restore it on a host like the one that saved it: pyvmm compat diff compares two",
        )

    def check_memory(self) -> None:
        """Read all of the memory's file, and compare it with its checksum. Raises `UserError`."""
        memory = self._manifest.memory
        if memory_file.checksum_of(self._fd, memory.size) != memory.sha256:
            raise UserError(
                f"{self._what}: {memory.file} is not what memory.sha256 says",
                "use another snapshot",
            )

    def load(self, space: AddressSpace) -> None:
        """Show the saved memory in RAM, before any VM maps it. Raises `HostError`."""
        try:
            space.load(self._fd)
        except OSError as error:
            raise HostError(f"{self._what}: {error.strerror}") from error
        ram = space.ram_region
        self._watched = sigbus.Watched(self._what, ram.host_address, ram.size)

    def apply(self, cycle: PowerCycle, parts: Parts) -> float:
        """Give *cycle*, whose parts are connected, and *parts* the saved state; return seconds.

        Virtio devices go on at once; vCPUs have not started. Raises `HostError` and `UserError`.
        """
        began = time.monotonic()
        put_in_place(self._what, self._manifest.state, cycle, parts)
        if parts.virtio is not None:
            parts.virtio.resume()
        parts.vmgenid.tell(cycle.gic)  # it has another ID, as each restored machine has
        return time.monotonic() - began

    def forget(self) -> None:
        """Forget the memory's file: RAM shows it no longer. Idempotent."""
        if self._watched is not None:
            self._watched.close()
            self._watched = None

    def close(self) -> None:
        """Close the memory's file. No VM may map it. Idempotent."""
        self.forget()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
