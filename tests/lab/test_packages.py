"""Install Debian packages in a lab host that is already up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

DAEMONS = {
    "passt": "passt --help",
    "virtiofsd": "/usr/libexec/virtiofsd --version",
    "qemu-utils": "qemu-storage-daemon --version",
}


def sh(host: Host, script: str) -> str:
    done = host.run(["sh", "-c", script], timeout=120)
    assert done.status == 0, (script, done.stderr)
    return done.stdout.decode()


def test_a_host_gets_programs_and_their_libraries(lab_host: Callable[[str], Host]) -> None:
    host = lab_host("fwb")
    libc = "readlink -f /usr/lib/aarch64-linux-gnu/libc.so.6"
    before = sh(host, libc)
    packages.install(host, DAEMONS)
    packages.install(host, DAEMONS)
    for package, command in DAEMONS.items():
        program = command.split(maxsplit=1)[0].rpartition("/")[2]
        assert program in sh(host, f"{command} 2>&1"), package
    assert sh(host, libc) == before, "what the host has stays"


def test_a_package_takes_the_place_of_the_busybox_program(lab_host: Callable[[str], Host]) -> None:
    host = lab_host("fwb")
    version = ["cpio", "--version"]  # not by the shell, which is busybox, and prefers its own
    assert b"BusyBox" in host.run(version).stderr
    packages.install(host, ["cpio"])
    assert b"GNU cpio" in host.run(version).stdout
