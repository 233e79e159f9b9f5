"""Debian's own arm64 kernels, as kernels for lab hosts: an Image and the modules a host needs."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from vmm.errors import HostError
from vmm.lab import apt, cache, command, foreign
from vmm.lab.cpio import CpioWriter
from vmm.progress import step


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


@dataclass(frozen=True)
class StockKernel:
    """The newest Debian kernel whose version matches *version* (a glob) in *suite*."""

    version: str = "7.*"
    suite: str = "trixie-backports"
    extra: tuple[str, ...] = ()
    """Further modules for the host."""

    @cached_property
    def _packages(self) -> Path:
        """The kernel's packages, unpacked, with an index of its modules."""

        def name(kind: str) -> str:
            pattern = f"linux-{kind}-{self.version}-arm64"
            return apt.newest(pattern, suite=self.suite, arch="arm64")

        names = [name("binary"), name("modules"), name("base")]
        debs = apt.fetch(names, suite=self.suite, arch="arm64")

        def build(temporary: Path) -> None:
            with step(f"unpacking {names[0]}"):
                apt.unpack(debs, temporary)
                (temporary / "lib").symlink_to("usr/lib")
                for modules in (temporary / "usr/lib/modules").iterdir():
                    command.run([*foreign.depmod(), "-b", str(temporary), modules.name])

        key = cache.digest([deb.name for deb in debs])
        return cache.entry(cache.root() / "kernels" / f"{names[0]}-{key}", build)

    @cached_property
    def _directory(self) -> Path:
        for directory in (self._packages / "usr/lib/modules").iterdir():
            return directory
        raise HostError(f"{self._packages} holds no kernel", "remove it and try again")

    def image(self) -> Path:
        """Return the kernel: Debian's arm64 vmlinuz is a plain Image."""
        return self._directory / "vmlinuz"

    def modules(self) -> Path:
        """Return the archive with the modules that hosts get, and all they depend on."""
        directory = self._directory
        wanted = (*MODULES, *self.extra)
        key = cache.digest(self._packages.name, wanted, Path(__file__).read_text())

        def build(temporary: Path) -> None:
            files = closure(directory, wanted)
            under = f"usr/lib/modules/{directory.name}"
            with step("packing the host kernel's modules"), temporary.open("wb") as file:
                archive = CpioWriter(file)
                made = {"usr", "usr/lib"}
                for path in files:
                    inside = f"{under}/{path}"
                    for parent in reversed(Path(inside).parents[:-1]):
                        if str(parent) not in made:
                            made.add(str(parent))
                            archive.directory(str(parent))
                    data = (directory / path).read_bytes()
                    archive.file(inside.removesuffix(".xz"), _plain(path, data))
                for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
                    archive.file(f"{under}/{name}", (directory / name).read_bytes())
                there = {_name(path) for path in files}
                for name, modules in (("boot", BOOT), ("later", wanted)):
                    listing = " ".join(module for module in modules if module in there)
                    archive.file(f"{under}/pyvmm.{name}", listing.encode())
                index = (directory / "modules.dep").read_text().splitlines(keepends=True)
                kept = [line for line in index if line.partition(":")[0] in set(files)]
                archive.file(f"{under}/modules.dep", "".join(kept).replace(".xz", "").encode())
                archive.file(f"{under}/modules.alias", (directory / "modules.alias").read_bytes())
                archive.close()

        return cache.entry(cache.root() / "kernels" / f"modules-{directory.name}-{key}.cpio", build)


def _name(path: str) -> str:
    """Return the name of the module in the file *path*, as the kernel spells it."""
    return Path(path).name.partition(".")[0].replace("-", "_")


_SIGNED = b"~Module signature appended~\n"


def _plain(path: str, data: bytes) -> bytes:
    """Return a module, given as in the package, decompressed and without its signature.

    Both here rather than there: an emulated CPU takes a second for what takes this one a moment,
    and apt has verified the package.
    """
    if path.endswith(".xz"):
        data = lzma.decompress(data)
    if data.endswith(_SIGNED):
        # struct module_signature (include/linux/module_signature.h), before the marker: 12 bytes,
        # the last four being the length of the signature before it, big-endian.
        end = len(data) - len(_SIGNED)
        data = data[: end - 12 - int.from_bytes(data[end - 4 : end], "big")]
    return data


def closure(directory: Path, wanted: tuple[str, ...]) -> list[str]:
    """Return the files of the modules *wanted* and all they need, in an order to load them in.

    Reads modules.dep: ``file: needed files``, those nearest first.
    """
    needs: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        files[_name(path)] = path
    order: dict[str, None] = {}
    for name in wanted:
        if name in files:
            path = files[name]
            order.update(dict.fromkeys([*reversed(needs[path]), path]))
    return list(order)
