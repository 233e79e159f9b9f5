"""The configuration of a machine: frozen values, validated on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config.bar import BarConfig
    from vmm.config.cgroup import CgroupConfig
    from vmm.config.command import CommandConfig
    from vmm.config.console import ConsoleConfig
    from vmm.config.control import ControlConfig
    from vmm.config.disk import DiskConfig
    from vmm.config.firmware import FlashConfig
    from vmm.config.gdb import GdbConfig
    from vmm.config.incoming import PeerConfig
    from vmm.config.net import NetConfig
    from vmm.config.pmem import PmemConfig
    from vmm.config.share import ShareConfig
    from vmm.config.snapshot import SnapshotConfig
    from vmm.config.vfio import VfioConfig
    from vmm.config.watchdog import WatchdogConfig

DEFAULT_MEMORY: Final = 512 << 20
DEFAULT_CMDLINE: Final = "console=ttyAMA0 panic=-1"
"""Command line of a kernel that brings none. ``panic=-1`` resets at once."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """The configuration of one machine. Raises `UserError` if its parts do not fit together.

    image      the kernel to boot; None: boot *firmware*
    firmware   contents of the first flash bank; None: boot *image*
    flash      file behind the second flash bank; None: its contents end with the machine
    initrd     initial RAM disk; None: the image's own, if it has one
    cmdline    kernel command line; None: the image's own, else `default_cmdline`. With firmware
               it is the device tree's bootargs
    cpus       number of vCPUs
    cpu_baseline  file of the CPU that they show (`vmm.state.baseline`); None: the host's
    memory     size of RAM in bytes
    panic      exit: a guest that panics ends the machine; ignore: it goes on, or resets
    reboot     whether a reset starts another power cycle, instead of ending the machine
    bars       regions of VFIO devices at fixed guest physical addresses
    write_back  set the proposed Write-Back flag on RAM's memory slot
    uapi       generation of the kernel's interface: auto, mainline or rfc
    uapi_profile  file that names what an out-of-tree kernel has (`vmm.uapi.profile`)
    sandbox    on: seal the process before the guest runs (`vmm.machine.seal`); log: the same, but
               what seccomp would refuse is an event; off: do not
    cgroup     a cgroup for this process and its daemons, with limits; None: where they are already
    sanitizer  give RAM that is owed cache maintenance two copies (`vmm.coherence.sanitizer`)
    memory_dump  file for the contents of RAM at the guest's end; None: no dump
    verify     before the guest runs, prove which memory type stage 2 gives each of *bars*
    rng        add a virtio entropy device
    disks      virtio block devices, in order
    nets       virtio network devices, in order
    vsock      the guest's context ID; None: no socket device
    shares     directories that the guest can mount
    vfio       devices of the host that are assigned to the guest
    transport  how virtio devices are attached: mmio or pci
    consoles   ports of the virtio console device, in order
    balloon    initial size of the virtio balloon in bytes; None: no balloon
    pmems      virtio persistent memory devices, in order
    gdb        where a debugger can connect; None: nowhere
    control    where its user can reach the machine while it runs; None: nowhere
    watchdog   when a vCPU counts as stuck; None: nobody looks
    snapshot   where to write snapshots; None: there are none
    restore    directory of the snapshot to go on from; it has the machine's configuration, and
               `vmm.machine.restore` replaces this one by it
    incoming   where to wait for a guest that moves here, which brings its configuration:
               `vmm.machine.incoming` replaces this one by it
    command    what the small guest runs instead of a shell; its ports are in *consoles*, its
               directory in *shares*
    """

    image: Path | None = None
    firmware: Path | None = None
    flash: FlashConfig | None = None
    initrd: Path | None = None
    cmdline: str | None = None
    cpus: int = 1
    cpu_baseline: Path | None = None
    memory: int = DEFAULT_MEMORY
    reboot: bool = True
    panic: str = "exit"
    bars: tuple[BarConfig, ...] = ()
    write_back: bool = False
    uapi: str = "auto"
    uapi_profile: Path | None = None
    sandbox: str = "on"
    cgroup: CgroupConfig | None = None
    sanitizer: bool = False
    memory_dump: Path | None = None
    verify: bool = False
    rng: bool = False
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    vsock: int | None = None
    shares: tuple[ShareConfig, ...] = ()
    vfio: tuple[VfioConfig, ...] = ()
    transport: str = "mmio"
    consoles: tuple[ConsoleConfig, ...] = ()
    balloon: int | None = None
    pmems: tuple[PmemConfig, ...] = ()
    gdb: GdbConfig | None = None
    control: ControlConfig | None = None
    watchdog: WatchdogConfig | None = None
    snapshot: SnapshotConfig | None = None
    restore: Path | None = None
    incoming: PeerConfig | None = None
    command: CommandConfig | None = None

    @property
    def shares_memory(self) -> bool:
        """Whether other processes serve devices, and have to reach RAM.

        That is known once disks' formats are: see `vmm.virtio.block.image_format`.
        """
        if self.shares or any(net.shares_memory for net in self.nets):
            return True
        return any(disk.shares_memory for disk in self.disks)

    @property
    def comes_along(self) -> bool:
        """Whether the configuration is with the guest's state, and this one is not all of it."""
        return self.restore is not None or self.incoming is not None

    @property
    def default_cmdline(self) -> str:
        """Command line of a kernel that brings none, with hvc0 if that is the terminal."""
        if self.command is not None:
            return f"{DEFAULT_CMDLINE} quiet"
        if any(each.kind == "stdio" and not each.name for each in self.consoles):
            return f"{DEFAULT_CMDLINE} console=hvc0"
        return DEFAULT_CMDLINE

    def _check_sanitizer(self) -> None:
        """Raise `UserError` for devices that share memory with the guest."""
        if not self.sanitizer:
            return
        coherent = (self.rng, self.disks, self.nets, self.vsock, self.shares, self.vfio)
        if any((*coherent, self.consoles, self.balloon is not None, self.pmems, self.command)):
            raise UserError(
                "--coherency-sanitizer: virtio and assigned devices are coherent with the guest's "
                "caches, and it has none in this mode",
                "leave out all devices but the serial port, and COMMAND",
            )

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError(
                f"--cpus: a machine has at least one CPU, not {self.cpus}", "use --cpus 1"
            )
        if self.memory <= 0:
            raise UserError("--memory: a machine has some", "use --memory 512M")
        if self.cmdline is not None and "\0" in self.cmdline:
            raise UserError("--cmdline: it contains a NUL character", "remove it")
        self._check_sanitizer()
        if self.vfio or self.bars:
            from vmm.config.vfio import check_devices

            check_devices(self.vfio, self.bars)
        if self.firmware is not None or (self.image is None and not self.comes_along):
            from vmm.config.firmware import check_firmware

            check_firmware(self.image, self.firmware, self.initrd)
        if self.nets:
            from vmm.config.net import check_nets

            check_nets(self.nets)
        if self.consoles:
            from vmm.config.console import check_consoles

            check_consoles(self.consoles)
        if self.balloon is not None:
            from vmm.config.balloon import check_balloon

            check_balloon(self.balloon, self.memory)
        if self.command is not None:
            from vmm.config.command import check_command

            check_command(self.command, self.image, self.consoles)
