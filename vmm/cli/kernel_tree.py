"""``--kernel-tree``: boot the kernel in a build tree, with the small guest as its initrd."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from vmm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.config import MachineConfig

BOOT: Final = "arch/arm64/boot"

IMAGES: Final = ("Image", "Image.gz", "Image.zst", "Image.xz", "vmlinuz.efi")
"""Images that `make` leaves in `BOOT` (arch/arm64/boot/Makefile); those that pyvmm unpacks."""

ALWAYS: Final = ("BLK_DEV_INITRD", "BINFMT_ELF", "BINFMT_SCRIPT", "DEVTMPFS", "PROC_FS", "SYSFS")
"""Options that the small guest itself needs built in."""


def image(tree: Path) -> Path:
    """Return the kernel image in *tree*, the newest if there are several. Raises `UserError`."""
    found = [path for name in IMAGES if (path := tree / BOOT / name).exists()]
    if not found:
        raise UserError(
            f"--kernel-tree {tree}: there is no {BOOT}/Image",
            "build one (make ARCH=arm64 Image), or name the directory given to make as O=",
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def system_map(tree: Path) -> Path | None:
    """Return where *tree* has the addresses of its functions; None: it does not."""
    path = tree / "System.map"
    return path if path.exists() else None


def initrd() -> Path:
    """Return the small guest's initrd. Raises `HostError`."""
    from vmm.lab.guest.stock_guest import initramfs

    return initramfs()


def check(tree: Path, config: MachineConfig) -> None:
    """Raise `UserError` if *tree*'s .config, if any, lacks what the small guest needs built in."""
    try:
        text = (tree / ".config").read_text(errors="replace")
    except OSError:
        return
    built_in = set(re.findall(r"^CONFIG_(\w+)=y$", text, re.MULTILINE))
    lacking = [name for name in _needs(config) if name not in built_in]
    if lacking:
        enable = " ".join(f"-e {name}" for name in lacking)
        modules = any(f"CONFIG_{name}=m" in text for name in lacking)
        raise UserError(
            f"--kernel-tree {tree}: the kernel has no {', '.join(lacking)} built in"
            + (" (the small guest has no modules of it)" if modules else ""),
            f"scripts/config {enable}, and build again"
            + ("; called in /, nothing is shared" if "VIRTIO_FS" in lacking else ""),
        )


def _needs(config: MachineConfig) -> list[str]:
    needs = list(ALWAYS)
    if "ttyAMA0" in (config.cmdline or config.default_cmdline):
        needs.append("SERIAL_AMBA_PL011_CONSOLE")
    kinds = {
        "VIRTIO_CONSOLE": config.consoles,
        "VIRTIO_FS": config.shares,
        "VIRTIO_BLK": config.disks,
        "VIRTIO_NET": config.nets,
    }
    wanted = [name for name, given in kinds.items() if given]
    if wanted:
        needs.append("VIRTIO_PCI" if config.transport == "pci" else "VIRTIO_MMIO")
    return needs + wanted
