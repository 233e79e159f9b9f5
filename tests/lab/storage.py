"""Scenarios for tests of disks, whatever backend serves them.

said = boot(host, reboot_guest(), "--disk", "/run/disk.img")
assert_survived(said)
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from vmm.lab.guest import fixture
from vmm.lab.guest.fixture import Guest
from vmm.lab.host.emulated_host import Host

KERNEL = "6.12"
MODULES = ("virtio_mmio", "virtio_pci", "virtio_blk", "ext4")
CMDLINE = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
EVENTS = "/run/tmp/storage-events"
PATIENCE = 200.0
"""Seconds that a guest may run, reboot included."""


def shell(host: Host, script: str) -> str:
    """Run *script* in the lab host; return its output. Fail if its status is not 0."""
    done = host.run(["sh", "-ec", script], timeout=120)
    assert done.status == 0, done
    return done.stdout.decode()


class Said(NamedTuple):
    """The result of running a guest."""

    status: int
    """pyvmm's exit status."""
    text: str
    """The console without carriage returns, then what pyvmm wrote to stderr."""
    events: list[str]


def command(guest: Guest, *options: str, memory: str = "320M") -> list[str]:
    """Return the command that boots *guest* in a lab host."""
    files = ["--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    fixed = ["--host", "native", "--memory", memory, "--events", EVENTS, "--cmdline", CMDLINE]
    return ["pyvmm", "run", *fixed, *options, *files]


def boot(host: Host, guest: Guest, *options: str, memory: str = "320M") -> Said:
    """Run *guest* in *host* until it ends, with *options* of pyvmm run."""
    return outcome(host, command(guest, *options, memory=memory))


def outcome(host: Host, argv: list[str]) -> Said:
    """Run *argv*, which runs a guest, in *host*."""
    done = host.run(argv, timeout=PATIENCE)
    text = (done.stdout + done.stderr).decode(errors="replace").replace("\r", "")
    lines = host.run(["cat", EVENTS], timeout=60).stdout.splitlines()
    return Said(done.status, text, [json.loads(line)["event"] for line in lines])


REBOOT = r"""
checksums() { (cd /mnt; find . -type f | sort | xargs md5sum | md5sum); }
if [ "$(e2label /dev/vda 2>/dev/null)" != pyvmm ]; then
    mkfs.ext4 -qF -L pyvmm /dev/vda
    mount /dev/vda /mnt
    dd if=/dev/urandom of=/mnt/large bs=1M count=6 conv=fsync 2>/dev/null
    mkdir /mnt/small
    for number in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do echo "$number" >/mnt/small/$number; done
    rm /mnt/small/3
    mv /mnt/small/4 /mnt/small/3
    fsync /mnt/small/* /mnt/small /mnt
    echo "before: $(checksums)"
    reboot  # not unmounted: the journal has to do
fi
mount /dev/vda /mnt
echo "after: $(checksums)"
umount /mnt
fsck.ext4 -fn /dev/vda >/dev/null 2>&1
echo "fsck: $?"
"""


def reboot_guest() -> Guest:
    """Return a guest that makes a file system on /dev/vda, reboots, and checks it."""
    return fixture.guest(KERNEL, modules=MODULES, packages=["e2fsprogs"], script=REBOOT)


def assert_survived(said: Said) -> None:
    """Check that a `reboot_guest` found what it had written, in a clean file system."""
    assert said.status == 0, said.text
    found = re.findall(r"^(before|after): ([0-9a-f]{32}) ", said.text, re.MULTILINE)
    assert [when for when, _ in found] == ["before", "after"], said.text
    assert found[0][1] == found[1][1], said.text
    assert "fsck: 0\n" in said.text, said.text
    assert said.events.count("power-on") == 2
    assert "virtio-needs-reset" not in said.events
