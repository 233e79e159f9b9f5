"""The lab host's root file system: Debian's arm64 packages, unpacked, as an initramfs.

It is two cpio archives, which the kernel unpacks one after the other: the base system, the same
for every kernel, and one kernel's modules. They are not compressed, as an emulated CPU takes longer
to decompress bytes than to read them.
"""

from __future__ import annotations

from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cpio import CpioWriter, concatenate
from vmm.lab import cache, command
from vmm.lab.debian import apt, prefix
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Iterable

SUITE = "trixie"
_KEPT = 8
"""Archives of each kind that stay in the cache: one for each kernel in use, and some more."""
PACKAGES = (
    "busybox-static",
    "iproute2",
    "python3-cffi",
    "python3-click",
    "python3-h11",
    "python3-pytest",
    "python3-structlog",
)

_UNWANTED = (
    "etc/apparmor.d",
    "usr/bin/perl*",
    "usr/include",
    "usr/lib/*/gconv",
    "usr/lib/*/perl-base",
    "usr/lib/python3.13/idlelib",
    "usr/lib/python3.13/lib-dynload/_*test*",
    "usr/lib/python3.13/pydoc_data",
    "usr/lib/python3.13/test",
    "usr/lib/python3.13/turtle*",
    "usr/lib/ssl",
    "usr/lib/systemd",
    "usr/lib/tmpfiles.d",
    "usr/lib/valgrind",
    "usr/libexec",
    "usr/share/[!p]*",
    "usr/share/p[!y]*",
    "var",
    # dpkg and its friends
    "usr/bin/deb*",
    "usr/bin/dpkg*",
    "usr/bin/tar",
    "usr/lib/dpkg",
    "usr/sbin/dpkg*",
    # of iproute2, `ip` and `ss` stay
    "usr/bin/[lnr]*stat",
    "usr/bin/rdma",
    "usr/sbin/[abdgtv]*",
    # libraries of what is left out above. Python's hashlib has its own functions without OpenSSL's
    "usr/lib/*/libcom_err*",
    "usr/lib/*/libdb-*",
    "usr/lib/*/libg[a-z]*api*",
    "usr/lib/*/libk*",
    "usr/lib/*/libsqlite3*",
    "usr/lib/*/libtirpc*",
    "usr/lib/*/ossl-modules",
    "usr/lib/python3.13/lib-dynload/_hashlib*",
    "usr/lib/python3.13/lib-dynload/_sqlite3*",
)
"""Globs of what no host needs. Each megabyte takes 20 ms of every boot."""

_AGENT = (
    "__init__.py",
    "lab/__init__.py",
    "lab/protocol.py",
    "lab/relay.py",
    "lab/inside/__init__.py",
    "lab/inside/agent.py",
    "lab/inside/session.py",
    "lab/inside/spawn.py",
    "lab/inside/zygote.py",
)
"""The modules of vmm that the agent needs."""
_DIRECTORIES = ("dev", "host", "proc", "run", "sys", "var", "var/tmp")
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "sbin": "usr/sbin", "var/run": "/run"}


def compile_python(directory: Path) -> None:
    """Compile all Python files in *directory* to .pyc files that are never checked again."""
    compiler = [*prefix.python(), "-m", "compileall", "-q"]
    command.run(
        [
            *compiler,
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            str(directory),
            "-p",
            "/",
            str(directory),
        ]
    )


@once
def base() -> Path:
    """Return the archive with the base system, from the cache."""
    debs = apt.fetch(PACKAGES, suite=SUITE, arch="arm64", closure=True)
    package = Path(__file__).parents[2]
    sources = {name: (package / name).read_bytes() for name in _AGENT}
    sources["init"] = (package / "lab/inside/init.sh").read_bytes()
    key = cache.digest(
        [deb.name for deb in debs],
        {name: data.hex() for name, data in sources.items()},
        Path(__file__).read_text(),
    )

    def build(temporary: Path) -> None:
        with (
            step("building the lab host's root file system"),
            cache.scratch(temporary, "tree") as tree,
        ):
            _populate(tree, debs, sources)
            with temporary.open("wb") as file:
                archive = CpioWriter(file)
                archive.tree(tree)
                archive.character_device("dev/console", 5, 1)
                archive.character_device("dev/null", 1, 3, 0o666)
                archive.close()

    return cache.entry(cache.root() / "rootfs" / f"base-{key}.cpio", build)


def _populate(tree: Path, debs: Iterable[Path], sources: dict[str, bytes]) -> None:
    apt.unpack(debs, tree)
    for pattern in _UNWANTED:
        for path in tree.glob(pattern):
            cache.remove(path)
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, target in _LINKS.items():
        if not (tree / name).exists():
            (tree / name).symlink_to(target)
    for applet in prefix.busybox_applets():
        if not (tree / "usr/sbin" / applet).exists() and not (tree / "usr/bin" / applet).exists():
            (tree / "usr/bin" / applet).symlink_to("busybox")
    (tree / "usr/bin/python").symlink_to("python3")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for name, data in sources.items():
        path = tree / ("init" if name == "init" else f"usr/lib/pyvmm/vmm/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tree / "init").chmod(0o755)
    compile_python(tree / "usr/lib")


@once
def initrd(modules: Path | None) -> Path:
    """Return the archive that a host boots with: the base system and a kernel's *modules*."""
    parts = [base(), *([modules] if modules else [])]

    def build(temporary: Path) -> None:
        with temporary.open("wb") as file:
            concatenate(parts, file)
        for pattern in ("base-*.cpio", "initrd-*.cpio"):
            cache.prune(cache.root() / "rootfs", pattern, _KEPT)

    name = cache.digest([part.name for part in parts])
    return cache.entry(cache.root() / "rootfs" / f"initrd-{name}.cpio", build)
