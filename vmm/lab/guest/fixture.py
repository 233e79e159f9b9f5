"""Guests for tests: a stock kernel of Debian's, with the modules and programs that a test names.

    from vmm.lab.guest import fixture

    guest = fixture.guest(
        kernel="6.12",
        modules=["virtio_mmio", "virtio_blk"],
        packages=["e2fsprogs"],
        script="mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && df /mnt",
    )
    pyvmm run --initrd {guest.initrd} --cmdline "... pyvmm.then=poweroff" {guest.kernel}

The initramfs is that of `vmm.lab.guest.stock_guest`, followed by more archives. Its init loads the
modules, runs the command of ``pyvmm.run="..."``, then the script, then what ``pyvmm.then=`` says.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from vmm.cpio import CpioWriter, concatenate
from vmm.errors import UserError
from vmm.lab import cache
from vmm.lab.debian import modules, programs
from vmm.lab.debian.modules import Modules
from vmm.lab.guest.stock_guest import CLOUD, NEWEST, STANDARD, initramfs, linux_packages
from vmm.lab.guest.stock_guest import kernel as image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEPT = 24
"""Archives that stay in the cache: scripts change often."""


class Guest(NamedTuple):
    """A guest to boot: an arm64 Image and a cpio archive."""

    kernel: Path
    initrd: Path


def guest(  # noqa: PLR0913  (all independent)
    kernel: str = NEWEST,
    *,
    modules: Sequence[str] = (),
    packages: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    script: str = "",
    flavour: str = "",
    as_found: bool = False,
) -> Guest:
    """Return a guest from the cache. The first of its kind takes seconds, and downloads.

    kernel    "6.1", "6.12", "7": see `vmm.lab.guest.stock_guest.kernel`
    modules   to load, in this order, each after what it needs; what is built in is left out.
              A device in a virtio-mmio slot needs "virtio_mmio". What the kernel loads by itself
              (an algorithm, a file system) must be named here, too
    packages  of Debian trixie, whose programs are wanted: see `programs.archive`. busybox is there
              always, and its shell prefers its own applets: "/usr/sbin/ip" is the package's
    files     to add: their paths in the guest, and here. They keep their mode
    script    which init's shell sources after pyvmm.run
    flavour   Debian's; by default the cloud one, which boots faster, if it has the modules
    as_found  load only those of the modules that there are devices for

    Raises `UserError` if the kernel lacks a module, `HostError` as `apt.fetch` does.
    """
    wanted = tuple(each.replace("-", "_") for each in modules)
    parts = [initramfs()]
    chosen = flavour or CLOUD
    if wanted:
        tree = _modules(kernel, chosen)
        if not flavour and tree.missing(wanted):
            chosen = STANDARD
            tree = _modules(kernel, chosen)
        if missing := tree.missing(wanted):
            raise UserError(f"Debian's {chosen} kernel {kernel} has no module {missing[0]}")
        load = "as-found" if as_found else " ".join(tree.known(wanted))
        parts.append(tree.archive(wanted, {"load": load}))
    if packages:
        parts.append(programs.archive(packages))
    return Guest(image(kernel, chosen), _joined(parts, files or {}, script))


def _modules(kernel: str, flavour: str) -> Modules:
    """Return the modules of Debian's newest *kernel* of *flavour*."""
    return Modules.of(modules.unpacked(*linux_packages(kernel, flavour)))


def _joined(parts: Sequence[Path], files: Mapping[str, Path], script: str) -> Path:
    directory = cache.root() / "guests"
    contents = {name.lstrip("/"): path.read_bytes() for name, path in sorted(files.items())}
    modes = {name.lstrip("/"): path.stat().st_mode & 0o777 for name, path in files.items()}
    if script:
        contents["etc/pyvmm.script"] = script.encode()

    def build(temporary: Path) -> None:
        with temporary.open("wb") as file:
            concatenate(parts, file)
            archive = CpioWriter(file)
            for name, data in contents.items():
                for parent in reversed(PurePath(name).parents[:-1]):
                    archive.directory(str(parent))
                archive.file(name, data, modes.get(name, 0o644))
            archive.close()
        cache.prune(directory, "fixture-*.cpio", _KEPT)

    if len(parts) == 1 and not contents:
        return parts[0]
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    key = cache.digest([part.name for part in parts], hashes, modes)
    return cache.entry(directory / f"fixture-{key}.cpio", build)
