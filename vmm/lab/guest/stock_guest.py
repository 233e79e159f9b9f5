"""Small guests: Debian's arm64 kernels, with an initramfs of Debian's busybox.

    kernel("6.1") -> vmlinuz
    initramfs() -> .cpio

`vmm.lab.guest.fixture` adds what a test needs; `vmm.lab.guest.uki` makes one file of it all.
Everything is cached. Versions are what the mirror offers when they are first asked for.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cpio import CpioWriter
from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.debian import apt, prefix
from vmm.lab.progress import step

if TYPE_CHECKING:
    from collections.abc import Mapping

NEWEST = "7"
VERSIONS = ("6.1", "6.12", NEWEST)
"""The kernels that tests boot: one per Debian release and its newest backport."""

CLOUD = "cloud-arm64"
STANDARD = "arm64"

_SUITES = {
    "6.1": ("bookworm", "linux-image-{version}.*-*-{flavour}"),
    "6.12": ("trixie", "linux-image-{version}.*-{flavour}"),
}
_BACKPORT = ("trixie-backports", "linux-binary-{version}.*-{flavour}")
"""The suite of each kernel version, and the name of its package there."""

_BUSYBOX = ("trixie", "busybox-static")

_DIRECTORIES = ("bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp")
_LINKS = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
"""Links in /dev that are udev's elsewhere, to files in /proc/self."""

_FSTAB = """\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
"""
FILESYSTEMS = ("ext4", "vfat", "iso9660", "squashfs")
"""The types that mount tries without -t: none is registered before its module is loaded."""

_PROFILE = """\
export PATH=/usr/sbin:/usr/bin:/bin HOME=/root TERM=${TERM:-linux}
export ENV=/etc/profile PS1='guest:\\w# '
# There is no init to ask: ask the kernel.
halt() { busybox halt -f; }
drain() { timeout 5 stty echo 2>/dev/null; } # waits until the console has sent all
poweroff() { drain; busybox poweroff -f; }
reboot() { drain; busybox reboot -f; }
"""
_UDHCPC = """\
#!/bin/sh
# udhcpc tells what a DHCP server gave.
case $1 in bound | renew) ;; *) exit ;; esac
ip address replace "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route replace default via "${router%% *}"
for each in $dns; do echo "nameserver $each"; done >/etc/resolv.conf
"""


def kernel(version: str = NEWEST, flavour: str = STANDARD) -> Path:
    """Return Debian's newest arm64 Image of *version* ("6.1", "7", "7.3"), from the cache.

    *flavour* is Debian's: "arm64", "cloud-arm64" (smaller, for virtual machines), "arm64-16k",
    "rt-arm64". Raises HostError: the mirror has none, can't be reached, disk full.
    """
    suite, package = _newest(version, flavour)
    (deb,) = apt.fetch([package], suite=suite, arch="arm64")

    def build(temporary: Path) -> None:
        with step(f"unpacking {package}"):
            _extract(deb, "vmlinuz", temporary)

    release = package.removeprefix("linux-").partition("-")[2]
    return cache.entry(_directory() / f"vmlinuz-{release}-{cache.digest(deb.name)}", build)


def _newest(version: str, flavour: str) -> tuple[str, str]:
    """Return the suite and the name of the package that has the kernel itself."""
    suite, pattern = _SUITES.get(version, _BACKPORT)
    name = pattern.format(version=version, flavour=flavour)
    return suite, apt.newest(name, suite=suite, arch="arm64")


def linux_packages(version: str = NEWEST, flavour: str = STANDARD) -> tuple[list[str], str]:
    """Return all packages of a kernel and its modules, and their suite. Raises HostError."""
    suite, package = _newest(version, flavour)
    kind, release = package.split("-", 2)[1:]
    # From 7 on, a kernel is in three packages.
    kinds = ["binary", "modules", "base"] if kind == "binary" else [kind]
    return [f"linux-{each}-{release}" for each in kinds], suite


def initramfs() -> Path:
    """Return the guest's initramfs from the cache: a cpio archive of 2 MB.

    It is not compressed, as an emulated CPU takes longer to decompress than to copy it.
    """
    suite, package = _BUSYBOX
    (deb,) = apt.fetch([package], suite=suite, arch="arm64")
    scripts = {
        "init": Path(__file__).with_name("init.sh").read_bytes(),
        "etc/pyvmm.runner": Path(__file__).with_name("command.sh").read_bytes(),
    }
    texts = [script.decode() for script in scripts.values()]
    key = cache.digest(deb.name, *texts, Path(__file__).read_text())

    def build(temporary: Path) -> None:
        with cache.scratch(temporary, "busybox") as busybox:
            _extract(deb, "busybox", busybox)
            _pack(temporary, scripts, busybox.read_bytes())

    return cache.entry(_directory() / f"initramfs-{key}.cpio", build)


def _directory() -> Path:
    return cache.root() / "guests"


def _extract(deb: Path, name: str, to: Path) -> None:
    """Copy the one file called *name*, or *name*-VERSION, out of *deb*."""
    if shutil.which("dpkg-deb") is None:
        raise command.missing("dpkg-deb")
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it complains when we stop reading
    ) as unpacker:
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
                for member in archive:
                    found = Path(member.name).name
                    if member.isfile() and (found == name or found.startswith(f"{name}-")):
                        content = archive.extractfile(member)
                        assert content
                        with to.open("wb") as file:
                            shutil.copyfileobj(content, file, 1 << 20)
                        return
        except tarfile.TarError as error:
            raise HostError(
                f"{deb}: damaged package: {error}", "remove it and try again"
            ) from error
        finally:
            unpacker.kill()
    raise HostError(f"{deb} holds no {name}", "`pyvmm lab build --refresh` asks the mirror again")


def _pack(to: Path, scripts: Mapping[str, bytes], busybox: bytes) -> None:
    with to.open("wb") as file:
        archive = CpioWriter(file)
        for name in _DIRECTORIES:
            archive.directory(name)
        # vmm.arm64.guest_command looks for it among the first entries.
        archive.file("etc/pyvmm.guest", b"")
        archive.character_device("dev/console", 5, 1)
        for name, script in scripts.items():
            archive.file(name, script, 0o755)
        archive.file("etc/fstab", _FSTAB.encode())
        archive.file("etc/filesystems", "".join(f"{name}\n" for name in FILESYSTEMS).encode())
        archive.file("etc/profile", _PROFILE.encode())
        archive.file("etc/udhcpc.script", _UDHCPC.encode(), 0o755)
        archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        archive.file("etc/group", b"root:x:0:\n")
        archive.directory("etc/dev")
        for name, target in _LINKS.items():
            archive.symlink(f"etc/dev/{name}", f"/proc/self/{target}")
        archive.file("bin/busybox", busybox, 0o755)
        for applet in prefix.busybox_applets():
            if applet != "busybox":
                archive.symlink(f"bin/{applet}", "busybox")
        archive.close()
