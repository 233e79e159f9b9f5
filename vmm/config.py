"""What to build: plain, frozen, validated on construction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from vmm.errors import UserError

UNITS: Final = {"": 20, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
"""Powers of two by suffix; a bare number counts MiB, as QEMU's and kvmtool's do."""

DEFAULT_MEMORY: Final = 512 << 20
DEFAULT_CMDLINE: Final = "console=ttyAMA0 panic=-1"
"""What a kernel gets that comes without a command line. ``panic=-1`` resets at once."""


def parse_size(text: str, option: str) -> int:
    """Return the bytes that *text* means: ``512``, ``512M``, ``2G``. Raises `UserError`."""
    match = re.fullmatch(r"(\d{1,15})([BKMGT]?)(i?B)?", text.strip().upper().replace("I", "i"))
    if not match:
        raise UserError(f"{option}: {text!r} is not a size", "write 512M or 2G")
    return int(match[1]) << UNITS[match[2]]


class BarConfig(NamedTuple):
    """One region of a VFIO device for the guest's physical space.

    base   guest physical address; None: above RAM
    cache  auto, require or forbid: see `vmm.coherence.policy`
    """

    bdf: str
    region: int
    base: int | None = None
    cache: str = "auto"


BAR: Final = re.compile(
    r"((?:[0-9a-f]{4,8}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-7]):(\d+)(?:@(\w+))?((?:,.*)?)",
    re.IGNORECASE,
)
CACHE_CHOICES: Final = ("auto", "require", "forbid")


def parse_bar(text: str) -> BarConfig:
    """Return what ``BDF:REGION[@GPA][,cache=...]`` means. Raises `UserError`."""
    match = BAR.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"--bar: {text!r} is not BDF:REGION[@GPA][,cache=auto|require|forbid]",
            "write 0000:01:00.0:4@0x100000000,cache=require",
        )
    bdf, region, base, options = match.groups()
    cache = "auto"
    for option in filter(None, options.split(",")):
        name, _, cache = option.partition("=")
        if name != "cache" or cache not in CACHE_CHOICES:
            raise UserError(
                f"--bar {text}: unknown option {option!r}", f"cache is {'|'.join(CACHE_CHOICES)}"
            )
    try:
        address = None if base is None else int(base, 0)
    except ValueError as error:
        raise UserError(f"--bar {text}: {base!r} is not an address", "write 0x...") from error
    return BarConfig(bdf if bdf.count(":") > 1 else f"0000:{bdf}", int(region), address, cache)


SERIAL_BYTES: Final = 20
"""How long a disk's serial number can be (VIRTIO 1.2, 5.2.6.1)."""

QUEUES_MAX: Final = 64


class DiskConfig(NamedTuple):
    """A disk: a raw image or block device at *path*.

    queues  requests are done in as many threads
    """

    path: Path
    read_only: bool = False
    serial: str = ""
    queues: int = 1


def parse_disk(text: str) -> DiskConfig:
    """Return what ``PATH[,ro][,serial=S][,queues=N]`` means. Raises `UserError`."""
    path, *options = text.split(",")
    if not path:
        raise UserError(f"--disk: {text!r} names no file", "write PATH[,ro][,serial=S][,queues=N]")
    read_only, serial, queues = False, "", 1
    for option in options:
        name, _, value = option.partition("=")
        if option == "ro":
            read_only = True
        elif name == "serial" and value.isascii() and 0 < len(value) <= SERIAL_BYTES:
            serial = value
        elif (
            name == "queues" and re.fullmatch("[0-9]{1,2}", value) and 0 < int(value) <= QUEUES_MAX
        ):
            queues = int(value)
        else:
            raise UserError(
                f"--disk {text}: cannot use {option!r}",
                f"options are ro, serial=S (up to {SERIAL_BYTES} ASCII characters) and queues=N "
                f"(up to {QUEUES_MAX})",
            )
    return DiskConfig(Path(path), read_only, serial, queues)


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """One machine.

    memory   bytes of RAM
    cmdline  the kernel's command line; None: the image's own, or `DEFAULT_CMDLINE`
    write_back  ask for the proposed Write-Back flag on RAM's memory slot
    uapi     which generation of kernel to believe in: auto, mainline or rfc
    verify   prove, before the guest runs, what stage 2 gives each of the bars
    rng      have a virtio entropy device
    disks    virtio block devices, in this order
    """

    image: Path
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

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError(
                f"--cpus: a machine has at least one CPU, not {self.cpus}", "use --cpus 1"
            )
        if self.memory <= 0:
            raise UserError("--memory: a machine has some", "use --memory 512M")
        if self.cmdline is not None and "\0" in self.cmdline:
            raise UserError("--cmdline: it contains a NUL character", "remove it")
