"""The small guest as one file that boots as it is: a unified kernel image (UKI).

    kernel, initramfs and modules, command line --ukify--> guest.img

It has drivers for all devices that pyvmm has, and loads those for the devices that it finds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmm.lab import cache, command
from vmm.lab.debian import apt
from vmm.lab.guest import fixture
from vmm.lab.guest.stock_guest import NEWEST, STANDARD
from vmm.lab.progress import step

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.lab.guest.fixture import Guest

COMMAND_LINE = "console=ttyAMA0 quiet cryptomgr.notests"
"""Without self-tests of ciphers, which take an emulated CPU a second."""

MODULES = (
    "virtio_mmio",
    "virtio_pci",
    "pci_host_generic",
    "virtio_balloon",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_pmem",
    "virtio_rng",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "nd_pmem",
    "nvme",
    "af_packet",
    # File systems, which the kernel asks modprobe for on mount.
    "ext4",
    "isofs",
    "loop",
    "overlay",
    "squashfs",
    "vfat",
    "nls_cp437",  # vfat's by default
    "nls_ascii",
)

_UKIFY = ("systemd-ukify", "systemd-boot-efi", "python3-pefile")


def guest_image(
    version: str = NEWEST, flavour: str = STANDARD, cmdline: str = COMMAND_LINE
) -> Path:
    """Return a UKI of a Debian kernel and the small initramfs, from the cache. Raises HostError."""
    return unified(fixture.guest(version, modules=MODULES, flavour=flavour, as_found=True), cmdline)


def unified(guest: Guest, cmdline: str) -> Path:
    """Return *guest* and *cmdline* as one UKI, from the cache. Raises HostError."""
    linux, initrd = guest
    debs = apt.fetch(_UKIFY, suite="trixie", arch="arm64")
    key = cache.digest(linux.name, initrd.name, cmdline, [deb.name for deb in debs])

    def build(temporary: Path) -> None:
        with (
            step(f"making a guest image of {linux.name}"),
            cache.scratch(temporary, "tools") as tools,
        ):
            apt.unpack(debs, tools)
            _ukify(tools, linux, initrd, cmdline, temporary)

    name = f"guest-{linux.name.split('-', 1)[1]}-{key}.img"
    return cache.entry(cache.root() / "guests" / name, build)


def _ukify(tools: Path, linux: Path, initrd: Path, cmdline: str, to: Path) -> None:
    command.run(
        [
            sys.executable,
            str(tools / "usr/bin/ukify"),
            "build",
            f"--linux={linux}",
            f"--initrd={initrd}",
            f"--cmdline={cmdline}",
            f"--stub={tools / 'usr/lib/systemd/boot/efi/linuxaa64.efi.stub'}",
            "--efi-arch=aa64",
            "--uname=unknown",
            "--os-release=",
            f"--output={to}",
        ],
        env={"PYTHONPATH": str(tools / "usr/lib/python3/dist-packages")},
    )
