"""The emulator: a QEMU that is new enough, and its command line for a profile's host."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import cache as once
from typing import TYPE_CHECKING, Final

from vmm.errors import HostError
from vmm.lab import command, protocol
from vmm.lab.debian import prefix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm.lab.host.profile import Profile

PROGRAM = "qemu-system-aarch64"
MINIMUM = (10, 0)
"""QEMU before 9.0 raises no alignment faults on Device memory; 7.2's `max` has no DIC. 10.0 is
Debian 13's, with which the lab was tried."""

COMMAND_LINE = (
    "console=ttyAMA0 quiet panic=-1"
    # These save a third of the boot's emulated instructions and do not concern KVM: auditing,
    # security modules, self-tests of ciphers, write protection and randomization of the kernel.
    " audit=0 lsm=capability cryptomgr.notests rodata=off nokaslr"
)

TRANSLATED_MIB = 96
"""MiB of translated code that QEMU keeps: when they are full, it drops all.

With its default, 1 GiB, code of guests that have ended is still there when their pages are written
again. QEMU invalidates it block by block then: two seconds for a guest's RAM. With 32 MiB it
translates the same code again too often."""

SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's own filter of system calls: a host that breaks QEMU starts no program with it."""

MONITOR: Final = 3
"""QEMU's descriptor of the socket on which it is to listen for QMP."""


@dataclass(frozen=True)
class Emulator:
    """A QEMU: the command that starts it, and its version."""

    command: tuple[str, ...]
    version: tuple[int, int]


def version(argv: Sequence[str]) -> tuple[int, int]:
    """Return the (major, minor) version of the emulator *argv*. Raises HostError."""
    text = command.run([*argv, "--version"])
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        raise HostError(f"{argv[0]} does not tell its version: {text.strip()[:80]!r}")
    return int(match[1]), int(match[2])


@once
def emulator() -> Emulator:
    """Return the system's QEMU if it is new enough, else Debian 13's from the cache.

    Raises HostError.
    """
    if shutil.which(PROGRAM) and (found := version([PROGRAM])) >= MINIMUM:
        return Emulator((PROGRAM,), found)
    tools = prefix.prefix("qemu", ["qemu-system-arm"])
    argv = (*tools.command(f"usr/bin/{PROGRAM}"), "-L", str(tools.root / "usr/share/qemu"))
    found = version(argv)
    if found < MINIMUM:
        raise HostError(
            f"QEMU {found[0]}.{found[1]} is too old for the lab",
            f"it takes {MINIMUM[0]}.{MINIMUM[1]} or later: `pyvmm lab build --refresh` looks again",
        )
    return Emulator(argv, found)


def machine(profile: Profile) -> str:
    """Return the argument of -M for *profile*."""
    return ",".join(("virt", "virtualization=on", f"gic-version={profile.gic}", *profile.machine))


def arguments(  # noqa: PLR0913  (each is one file of the host)
    profile: Profile,
    *,
    image: Path,
    initrd: Path,
    directory: Path,
    share: str = "/",
    device_tree: Path | None = None,
) -> list[str]:
    """Return QEMU's arguments for a host of *profile* whose run-time files are in *directory*."""
    command_line = f"{COMMAND_LINE} pyvmm.token={directory / 'token'} {profile.command_line}"
    # fmt: off
    argv = [
        "-name", f"pyvmm-lab-{profile.name}",
        "-M", machine(profile),
        "-cpu", profile.cpu,
        "-smp", str(profile.cpus),
        "-m", f"{profile.memory >> 20}M",
        "-accel", f"tcg,thread=multi,tb-size={TRANSLATED_MIB}",
        "-nodefaults",
        "-sandbox", SANDBOX,
        "-display", "none",
        "-no-reboot",
        "-serial", f"file:{directory / 'console.log'}",
        "-chardev", f"socket,id=qmp,fd={MONITOR},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-kernel", str(image),
        "-initrd", str(initrd),
        "-append", command_line.strip(),
        "-fsdev", f"local,id=outside,path={share},security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=outside,mount_tag=outside",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:{protocol.PORT}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
    ]
    # fmt: on
    for option, backend in profile.backends:
        argv += [option, backend]
    for device in profile.devices:
        argv += ["-device", device]
    # A mount tag can be mounted once, hence another device for the files that are to be mapped. It
    # comes last, so that the profile's devices keep their places on the bus.
    argv += [
        *("-fsdev", f"local,id=mapped,path={share},security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=mapped,mount_tag=mapped"),
    ]
    if device_tree:
        argv += ["-dtb", str(device_tree)]
    return argv


def dump_device_tree(profile: Profile, path: Path) -> list[str]:
    """Return the arguments with which QEMU writes *profile*'s device tree to *path* and ends."""
    # fmt: off
    argv = [
        "-M", f"{machine(profile)},dumpdtb={path}",
        "-cpu", profile.cpu,
        "-smp", str(profile.cpus),
        "-m", f"{profile.memory >> 20}M",
        "-display", "none",
        "-nodefaults",
    ]
    # fmt: on
    for option, backend in profile.backends:
        argv += [option, backend]
    for device in profile.devices:
        argv += ["-device", device]
    return argv
