"""Debian's own arm64 kernels, as kernels for lab hosts: an Image and the modules a host needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from vmm.lab.debian import apt, modules
from vmm.lab.debian.modules import Modules

if TYPE_CHECKING:
    from pathlib import Path


class Kernel(Protocol):
    """Where a profile's kernel comes from. Both may take minutes the first time, none later."""

    def image(self) -> Path:
        """Return the arm64 Image."""

    def modules(self) -> Path | None:
        """Return a cpio archive with lib/modules; None if all is built in."""


BOOT = ("9p", "9pnet_virtio", "virtio_net")
"""Loaded before the agent starts: without these it can't be reached."""
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
"""What hosts get; what a kernel has built in or lacks is left out."""
AT_HAND = ("dm_mod", "loop")
"""What hosts have besides, to be loaded by who wants it."""


@dataclass(frozen=True)
class StockKernel:
    """The newest Debian kernel whose version matches *version* (a glob) in *suite*."""

    version: str = "7.*"
    suite: str = "trixie-backports"
    extra: tuple[str, ...] = ()
    """Further modules for the host."""

    @cached_property
    def _modules(self) -> Modules:
        """The kernel's packages, unpacked, with an index of its modules."""

        def name(kind: str) -> str:
            pattern = f"linux-{kind}-{self.version}-arm64"
            return apt.newest(pattern, suite=self.suite, arch="arm64")

        packages = [name("binary"), name("modules"), name("base")]
        return Modules.of(modules.unpacked(packages, self.suite))

    def image(self) -> Path:
        """Return the kernel: Debian's arm64 vmlinuz is a plain Image."""
        return self._modules.directory / "vmlinuz"

    def modules(self) -> Path:
        """Return the archive with the modules that hosts get, and all they depend on."""
        tree = self._modules
        wanted = (*MODULES, *self.extra)
        lists = {"boot": " ".join(tree.known(BOOT)), "later": " ".join(tree.known(wanted))}
        return tree.archive((*wanted, *AT_HAND), lists)
