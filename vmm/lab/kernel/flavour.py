"""The lab's own kernels, built from Debian's kernel source: they show what stock kernels can't.

    mainline   with nvgrace-gpu, so that there is a cacheable PFNMAP to map
    rfc        the same, with our reading of a memslot flag that was once proposed (patches/)
    posted     the same, with that flag and capability as a series had them, versions 4 to 6
    percap     the same, with a capability that userspace enables for each VM, and no flag
    vendor     the same, as a vendor's kernel that follows the VMA and has no capability
    legacy     6.12, which maps cacheable PFNMAP as Device and says nothing

Each serves as a lab host and as a guest: everything is built in. The cache names a kernel by a hash
of its source, configuration, patches and compiler.

    cache/kernel/images/<flavour>-<hash>/Image  config  build.json
    cache/kernel/linux-source-.../              see source_tree
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmm.errors import UserError
from vmm.lab import cache
from vmm.lab.debian import apt
from vmm.lab.kernel import build
from vmm.lab.kernel.source_tree import SourceTree

MEMATTR = "stage2-ptdump-memattr.patch"
WRITE_BACK = "rfc-writeback-memslot.patch"


@dataclass(frozen=True)
class Flavour:
    """The sources of one kernel."""

    package: str
    """Debian's source package: a glob, of which the newest is taken."""
    suite: str
    fragments: tuple[str, ...]
    """Files in configs/, on top of allnoconfig."""
    patches: tuple[str, ...] = ()
    """Files in patches/, in the order to apply them in."""


def _newest(*patches: str) -> Flavour:
    # MEMATTR changes debugfs only: without more, KVM itself is that of Debian's source.
    fragments = ("lab.config", "since-6.13.config")
    return Flavour("linux-source-7.*", "trixie-backports", fragments, (MEMATTR, *patches))


FLAVOURS = {
    "mainline": _newest(),
    "rfc": _newest(WRITE_BACK),
    "posted": _newest("posted-writeback-memslot.patch"),
    "percap": _newest("percap-cacheable-pfnmap.patch"),
    "vendor": _newest("vendor-unknown-capability.patch"),
    "legacy": Flavour("linux-source-6.12", "trixie", ("lab.config",)),
}


@dataclass(frozen=True)
class BuiltKernel:
    """The kernel of a flavour (a key of `FLAVOURS`), from the cache or else built.

    The first build takes minutes (`image` shows a bar), another flavour of the same source a
    fraction of that. A cached kernel is used although the mirror may have a newer source.
    """

    flavour: str

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise UserError(
                f"the lab builds no kernel {self.flavour}", f"it builds {', '.join(FLAVOURS)}"
            )

    @property
    def recipe(self) -> Flavour:
        """The sources of the kernel."""
        return FLAVOURS[self.flavour]

    def image(self) -> Path:
        """Return the arm64 Image. Raises HostError: no network, disk full, tools missing."""
        return self._directory / "Image"

    def modules(self) -> None:
        """Return None: everything is built in."""

    def config(self) -> Path:
        """Return the kernel's configuration."""
        return self._directory / "config"

    @property
    def provenance(self) -> dict[str, object]:
        """Flavour, source and compiler of the build, and a hash of configuration and patches."""
        return cache.read_json(self._directory / "build.json")

    def built(self) -> bool:
        """Whether `image` will return at once."""
        return self._cached() is not None

    def refresh(self) -> Path:
        """Return the Image of the newest source, built if need be: for after `apt.forget`."""
        return self._build() / "Image"

    @cached_property
    def _directory(self) -> Path:
        return self._cached() or self._build()

    @property
    def _inputs(self) -> str:
        """A hash of the configuration, the patches and make's variables."""
        recipe = self.recipe
        return cache.digest(
            build.requested(_texts("configs", recipe.fragments)),
            _texts("patches", recipe.patches),
            build.VARIABLES,
        )

    def _cached(self) -> Path | None:
        """Return the newest kernel with the same configuration and patches."""
        found = [
            path.parent
            for path in _images().glob(f"{self.flavour}-*/build.json")
            if cache.read_json(path).get("inputs") == self._inputs
        ]
        newest = max(found, key=lambda path: (path / "build.json").stat().st_mtime, default=None)
        if newest:
            cache.used(newest)
        return newest

    def _build(self) -> Path:
        compiler = build.compiler()
        recipe = self.recipe
        package = apt.newest(recipe.package, suite=recipe.suite, arch="arm64")
        (deb,) = apt.fetch([package], suite=recipe.suite, arch="arm64")
        tree = SourceTree(deb)
        inputs = self._inputs  # once: somebody may edit a patch while this builds
        key = cache.digest(tree.version, inputs, compiler)

        def make(temporary: Path) -> None:
            tree.unpack()
            with tree.alone() as lock:
                tree.patch([_data("patches", name) for name in recipe.patches])
                build.configure(tree, _texts("configs", recipe.fragments))
                image = build.compile_image(tree, self.flavour, lock)
                temporary.mkdir()
                shutil.copyfile(image, temporary / "Image")
                shutil.copyfile(tree.build / ".config", temporary / "config")
            cache.write_json(
                temporary / "build.json",
                {
                    "flavour": self.flavour,
                    "source": tree.version,
                    "compiler": compiler,
                    "inputs": inputs,
                },
            )

        return cache.entry(_images() / f"{self.flavour}-{key}", make)


def _images() -> Path:
    return cache.root() / "kernel" / "images"


def _data(directory: str, name: str) -> Path:
    return Path(__file__).parent / directory / name


def _texts(directory: str, names: tuple[str, ...]) -> list[str]:
    return [_data(directory, name).read_text() for name in names]
