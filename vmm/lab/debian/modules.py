"""The modules of a Debian kernel: which it has, what they need, and archives of some.

    packages --unpack, depmod--> lib/modules/RELEASE --closure--> files, in load order --> .cpio

Archives hold them decompressed and without signatures: decompressing takes an emulated CPU a
second, and apt has verified the packages.
"""

from __future__ import annotations

import lzma
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cpio import CpioWriter
from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.debian import apt, prefix
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_SIGNED = b"~Module signature appended~\n"


def unpacked(packages: Sequence[str], suite: str) -> Path:
    """Return the directory with a kernel's *packages*, unpacked and indexed, from the cache."""
    debs = apt.fetch(packages, suite=suite, arch="arm64")

    def build(temporary: Path) -> None:
        with step(f"unpacking {packages[0]}"):
            apt.unpack(debs, temporary)
            if not (temporary / "lib").exists():
                (temporary / "lib").symlink_to("usr/lib")
            for modules in (temporary / "lib/modules").iterdir():
                command.run([*prefix.depmod(), "-b", str(temporary), modules.name])

    key = cache.digest([deb.name for deb in debs])
    return cache.entry(cache.root() / "kernels" / f"{packages[0]}-{key}", build)


def name(path: str) -> str:
    """Return the name of the module in the file *path* in the kernel's spelling."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def plain(path: str, data: bytes) -> bytes:
    """Return the module *data* of the file *path*, decompressed and without its signature."""
    if path.endswith(".xz"):
        data = lzma.decompress(data)
    if data.endswith(_SIGNED):
        # struct module_signature (include/linux/module_signature.h), before the marker: 12 bytes,
        # the last four being the length of the signature before it, big-endian.
        end = len(data) - len(_SIGNED)
        data = data[: end - 12 - int.from_bytes(data[end - 4 : end], "big")]
    return data


class Modules:
    """The modules in *directory*, a kernel's lib/modules/RELEASE that depmod has indexed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._needs: dict[str, list[str]] = {}
        self._files: dict[str, str] = {}
        # modules.dep: ``file: needed files``, the nearest first.
        for line in (directory / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            self._needs[path] = rest.split()
            self._files[name(path)] = path

    @classmethod
    def of(cls, tree: Path) -> Modules:
        """Return those of the one kernel in *tree*, a directory made by `unpacked`."""
        for directory in (tree / "lib/modules").iterdir():
            return cls(directory)
        raise HostError(f"{tree} holds no kernel", "remove it and try again")

    @cached_property
    def built_in(self) -> frozenset[str]:
        """The names of modules that this kernel has built in."""
        lines = (self.directory / "modules.builtin").read_text().splitlines()
        return frozenset(name(line) for line in lines)

    def __contains__(self, module: str) -> bool:
        return module in self._files

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Return those of *wanted* that are neither modules of this kernel nor built in."""
        return [each for each in wanted if each not in self and each not in self.built_in]

    def known(self, wanted: Iterable[str]) -> list[str]:
        """Return those of *wanted* that are modules of this kernel."""
        return [each for each in wanted if each in self]

    def closure(self, wanted: Iterable[str]) -> list[str]:
        """Return the files of the modules *wanted* and of all that they need, in load order.

        Those that are built in, or missing, are left out.
        """
        order: dict[str, None] = {}
        for module in wanted:
            if module in self._files:
                for needed in (*self._softly(module), module):
                    path = self._files[needed]
                    order.update(dict.fromkeys([*reversed(self._needs[path]), path]))
        return list(order)

    def _softly(self, module: str) -> list[str]:
        """Return the soft dependencies of *module* and of what it needs: by name or alias."""
        asking = [module, *(name(path) for path in self._needs[self._files[module]])]
        return [
            found
            for each in asking
            for word in self._soft.get(each, ())
            for found in ([word] if word in self._files else self._aliases.get(word, ()))
        ]

    @cached_property
    def _soft(self) -> dict[str, list[str]]:
        """What to load before each module. modules.softdep: ``softdep NAME pre: ... post: ...``."""
        soft: dict[str, list[str]] = {}
        for line in self._lines("softdep"):
            _, module, *rest = line.split()
            before = " ".join(rest).partition("post:")[0].replace("pre:", " ").split()
            soft.setdefault(name(module), []).extend(each.replace("-", "_") for each in before)
        return soft

    @cached_property
    def _aliases(self) -> dict[str, list[str]]:
        """Each alias's modules. modules.alias: ``alias PATTERN NAME``; only plain ones matter."""
        aliases: dict[str, list[str]] = {}
        for line in self._lines("alias"):
            alias, _, module = line.removeprefix("alias ").rpartition(" ")  # some have blanks
            aliases.setdefault(alias.replace("-", "_"), []).append(module)
        return aliases

    def _lines(self, index: str) -> Iterator[str]:
        path = self.directory / f"modules.{index}"
        if path.exists():
            yield from (line for line in path.read_text().splitlines() if line and line[0] != "#")

    def pack(self, archive: CpioWriter, files: Sequence[str]) -> None:
        """Add *files*, as `closure` returns them, and the indexes that modprobe needs.

        They go to usr/lib/modules; `usr` and `usr/lib` must be there already.
        """
        under = f"usr/lib/modules/{self.directory.name}"
        made: set[str] = {"usr", "usr/lib"}
        for path in files:
            inside = f"{under}/{path}"
            for parent in reversed(Path(inside).parents[:-1]):
                if str(parent) not in made:
                    made.add(str(parent))
                    archive.directory(str(parent))
            data = (self.directory / path).read_bytes()
            archive.file(inside.removesuffix(".xz"), plain(path, data))
        if under not in made:
            archive.directory("usr/lib/modules")
            archive.directory(under)
        for index in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            archive.file(f"{under}/{index}", (self.directory / index).read_bytes())
        needs = "".join(f"{path}: {' '.join(self._needs[path])}\n" for path in files)
        archive.file(f"{under}/modules.dep", needs.replace(".xz", "").encode())
        there = {name(path) for path in files}
        aliases = [line for line in self._lines("alias") if line.split()[-1] in there]
        archive.file(f"{under}/modules.alias", "".join(f"{a}\n" for a in aliases).encode())

    def archive(self, wanted: Sequence[str], lists: Mapping[str, str]) -> Path:
        """Return a cpio archive with the modules *wanted* and all they need, from the cache.

        *lists* are texts for init: the one called NAME is in usr/lib/modules/RELEASE/pyvmm.NAME.
        """
        release = self.directory.name
        packages = self.directory.parents[2].name  # has the packages' versions in it
        key = cache.digest(packages, wanted, lists, Path(__file__).read_text())

        def build(temporary: Path) -> None:
            with step(f"packing modules of Linux {release}"), temporary.open("wb") as file:
                writer = CpioWriter(file)
                for directory in ("usr", "usr/lib"):
                    writer.directory(directory)
                writer.symlink("lib", "usr/lib")
                self.pack(writer, self.closure(wanted))
                for listed, text in lists.items():
                    writer.file(f"usr/lib/modules/{release}/pyvmm.{listed}", text.encode())
                writer.close()

        return cache.entry(cache.root() / "kernels" / f"modules-{release}-{key}.cpio", build)
