"""Debian's own arm64 kernels for lab hosts: an Image, and the modules that a host needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from vmm.lab.debian import apt, modules
from vmm.lab.debian.modules import Modules

if TYPE_CHECKING:
    from pathlib import Path


class Kernel(Protocol):
    """A source of a profile's kernel. Each method may take minutes the first time only."""

    def image(self) -> Path:
        """Return the arm64 Image."""

    def modules(self) -> Path | None:
        """Return a cpio archive with lib/modules; None if all is built in."""


BOOT = ("9p", "9pnet_virtio", "virtio_net")
"""Loaded before the agent starts, which can't be reached without them."""
MODULES = (
    "9p",
    "9pnet_virtio",
    "iommufd",
    "overlay",
    "tun",
    "vfio_iommu_type1",
    "vfio_pci",
    "vhost_net",
    "vhost_vsock",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
)
"""The modules that hosts load. Those that a kernel has built in, or lacks, are left out."""
AT_HAND = ("dm_mod", "loop")
"""Modules that hosts have, but do not load by themselves."""


@dataclass(frozen=True)
class StockKernel:
    """The newest Debian kernel whose version matches *version* (a glob) in *suite*."""

    version: str = "7.*"
    suite: str = "trixie-backports"
    flavour: str = "arm64"
    """Debian's name for the configuration; ``arm64-16k`` has pages of 16 KiB."""
    extra: tuple[str, ...] = ()
    """Further modules for the host."""

    @cached_property
    def _modules(self) -> Modules:
        """The modules of the kernel's unpacked packages."""

        def name(kind: str) -> str:
            pattern = f"linux-{kind}-{self.version}-{self.flavour}"
            return apt.newest(pattern, suite=self.suite, arch="arm64")

        packages = [name("binary"), name("modules"), name("base")]
        return Modules.of(modules.unpacked(packages, self.suite))

    def image(self) -> Path:
        """Return the kernel: Debian's arm64 vmlinuz is a plain Image."""
        return self._modules.directory / "vmlinuz"

    def modules(self) -> Path:
        """Return the archive with the modules for hosts, and all that they need."""
        tree = self._modules
        wanted = (*MODULES, *self.extra)
        lists = {"boot": " ".join(tree.known(BOOT)), "later": " ".join(tree.known(wanted))}
        return tree.archive((*wanted, *AT_HAND), lists)
