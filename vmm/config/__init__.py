"""What to build: plain, frozen, validated on construction. One module for each option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config.bar import BarConfig
    from vmm.config.console import ConsoleConfig
    from vmm.config.disk import DiskConfig
    from vmm.config.firmware import FlashConfig
    from vmm.config.net import NetConfig
    from vmm.config.pmem import PmemConfig
    from vmm.config.share import ShareConfig
    from vmm.config.vfio import VfioConfig

DEFAULT_MEMORY: Final = 512 << 20
DEFAULT_CMDLINE: Final = "console=ttyAMA0 panic=-1"
"""What a kernel gets that comes without a command line. ``panic=-1`` resets at once."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """One machine.

    image    a kernel; None: firmware boots what it finds
    firmware  what the first bank of flash has
    flash    what the second one has; None, with firmware: nothing, and nothing is kept
    memory   bytes of RAM
    cmdline  the kernel's command line; None: the image's own, or `default_cmdline`; with firmware
             it is what the device tree has for it
    write_back  ask for the proposed Write-Back flag on RAM's memory slot
    uapi     which generation of kernel to believe in: auto, mainline or rfc
    verify   prove, before the guest runs, what stage 2 gives each of the bars
    rng      have a virtio entropy device
    disks    virtio block devices, in this order
    nets     network devices, in this order
    vsock    the guest's context ID, if it has a socket device
    shares   directories that the guest can mount
    vfio     devices of the host that are passed through
    transport  how virtio devices are attached: mmio or pci
    consoles  ports of the virtio console device
    pmems    files that the guest has as persistent memory, in this order
    balloon  bytes that a virtio balloon shall take at first; None: there is none
    """

    image: Path | None = None
    firmware: Path | None = None
    flash: FlashConfig | None = None
    initrd: Path | None = None
    cmdline: str | None = None
    cpus: int = 1
    memory: int = DEFAULT_MEMORY
    reboot: bool = True
    bars: tuple[BarConfig, ...] = ()
    write_back: bool = False
    uapi: str = "auto"
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

    @property
    def shares_memory(self) -> bool:
        """Whether other processes serve devices, and have to reach RAM.

        That is known once disks' formats are: see `vmm.virtio.block.image_format`.
        """
        if self.shares or any(net.shares_memory for net in self.nets):
            return True
        return any(disk.shares_memory for disk in self.disks)

    @property
    def default_cmdline(self) -> str:
        """What a kernel gets that comes without a command line: the user's terminal is its own."""
        if any(each.kind == "stdio" and not each.name for each in self.consoles):
            return f"{DEFAULT_CMDLINE} console=hvc0"
        return DEFAULT_CMDLINE

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError(
                f"--cpus: a machine has at least one CPU, not {self.cpus}", "use --cpus 1"
            )
        if self.memory <= 0:
            raise UserError("--memory: a machine has some", "use --memory 512M")
        if self.cmdline is not None and "\0" in self.cmdline:
            raise UserError("--cmdline: it contains a NUL character", "remove it")
        if self.vfio:
            from vmm.config.vfio import check_devices

            check_devices(self.vfio, self.bars)
        if self.firmware is not None or self.image is None:
            from vmm.config.firmware import check_firmware

            check_firmware(self)
        if self.consoles:
            from vmm.config.console import check_consoles

            check_consoles(self.consoles)
        if self.balloon is not None:
            from vmm.config.balloon import check_balloon

            check_balloon(self.balloon, self.memory)
