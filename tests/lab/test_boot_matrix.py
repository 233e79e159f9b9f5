"""The boot matrix: Debian's own kernels reach userland on every kind of host.

A kernel takes some ten seconds of emulated time to boot, so a cell is one run of pyvmm: boot with
all CPUs, reboot, boot again, power off. Those with one CPU do not reboot: that is the same code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmm.lab.guest import stock_guest
from vmm.library.command import Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.lab.host.emulated_host import Host

pytestmark = pytest.mark.lab

CMDLINE = "console=ttyAMA0 quiet panic=-1"
OLD, MIDDLE, NEW = stock_guest.VERSIONS
CELLS = [
    *(
        (profile, version, cpus)
        for profile in ("fwb", "nofwb")
        for version in stock_guest.VERSIONS
        for cpus in (1, 4)
    ),
    ("gicv2", MIDDLE, 1),
    ("gicv2", NEW, 4),
    ("16k", NEW, 4),
]


def machine(host: Host, version: str, cpus: int, *options: str) -> Command:
    command = ["pyvmm", "run", "--cpus", str(cpus), "--cmdline", CMDLINE, *options]
    return Command(
        host, [*command, "--initrd", str(stock_guest.initramfs()), str(stock_guest.kernel(version))]
    )


def expect_userland(console: Command, version: str, cpus: int) -> None:
    """Wait for the guest's banner, check kernel and CPUs, and wait for its shell."""
    banner = console.expect(rb"pyvmm guest: Linux (\S+)\r\nCPUs online: (\S+)\r\n")
    assert banner[1].decode().startswith(f"{version}."), console.story()
    assert banner[2].decode() == str(cpus), console.story()
    console.expect(rb"guest:\S*# ")


@pytest.mark.parametrize(("profile", "version", "cpus"), CELLS)
def test_a_kernel_that_nobody_here_built_boots_reboots_and_powers_off(
    lab_host: Callable[[str], Host], profile: str, version: str, cpus: int
) -> None:
    with machine(lab_host(profile), version, cpus) as console:
        expect_userland(console, version, cpus)
        if cpus > 1:
            console.send(b"reboot\n")
            expect_userland(console, version, cpus)
        console.send(b"poweroff\n")
        assert console.finish() == 0, console.story()
        assert not console.errors, console.story()


def test_sixteen_cpus_come_online(lab_host: Callable[[str], Host]) -> None:
    """Takes a minute on a host with two CPUs. 7.3, tried by hand, takes half as long again."""
    with machine(lab_host("fwb"), OLD, 16) as console:
        expect_userland(console, OLD, 16)
        console.send(b"poweroff\n")
        assert console.finish() == 0, console.story()
