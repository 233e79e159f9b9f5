"""Virtio devices, driven by Linux in a guest on real KVM."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.guest import stock_guest
from vmm.lab.host.emulated_host import Host
from vmm.lab.kernel.flavour import BuiltKernel

# The guest is the lab's own kernel, which has the drivers built in.
pytestmark = [
    pytest.mark.lab,
    pytest.mark.kernels,
    pytest.mark.profile("gh200"),
    pytest.mark.timeout(7200),
]

EVENTS = "/run/tmp/virtio-events"


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    return lab_host("gh200")


def there(path: Path) -> str:
    """Return the path at which the host sees one of our files."""
    return f"/host{path}"


def run(host: Host, script: str, then: str, *options: str) -> tuple[int, str]:
    """Run *script* in a guest with *options*; return pyvmm's status and the console output."""
    cmdline = f'console=ttyAMA0 quiet panic=-1 pyvmm.run="{script}" pyvmm.then={then}'
    command = ["pyvmm", "run", "--host", "native", "--memory", "256M", "--events", EVENTS]
    command += ["--initrd", there(stock_guest.initramfs()), "--cmdline", cmdline, *options]
    done = host.run([*command, there(BuiltKernel("mainline").image())], timeout=300)
    return done.status, done.stdout.decode(errors="replace")


def events(host: Host) -> list[str]:
    lines = host.run(["cat", EVENTS], timeout=60).stdout.splitlines()
    return [json.loads(line)["event"] for line in lines]


ENTROPY = (
    "cat /sys/class/misc/hw_random/rng_current; "
    "dd if=/dev/hwrng bs=1024 count=16 2>/dev/null | md5sum; "
    "cat /sys/bus/virtio/devices/virtio0/status"
)


def test_a_guest_gets_random_numbers(host: Host) -> None:
    status, text = run(host, ENTROPY, "poweroff", "--rng")
    assert status == 0
    assert "virtio_rng.0" in text
    assert "0x0000000f" in text
    assert "virtio-needs-reset" not in events(host)


def test_devices_work_again_after_each_reset(host: Host) -> None:
    """Each reset makes a new VM. The fifth reset in a row ends the machine: see Machine.run."""
    status, text = run(host, ENTROPY, "reboot", "--rng", "--cpus", "2")
    assert status == 4
    assert text.count("virtio_rng.0") == text.count("0x0000000f") == 5
    sums = [line.split()[0] for line in text.splitlines() if line.rstrip().endswith("  -")]
    assert len(set(sums)) == 5
    assert events(host).count("power-on") == 5


def test_a_guest_reads_and_writes_disks(host: Host, tmp_path: Path) -> None:
    """One disk with four queues, and a read-only one; a reboot keeps the data."""
    image, other = tmp_path / "disk.img", tmp_path / "other.img"
    data = os.urandom(8 << 20)
    image.write_bytes(data)
    other.write_bytes(data)
    script = (
        "md5sum /dev/vda /dev/vdb; cat /sys/block/vda/serial /sys/block/vd*/ro; echo; "
        "ls /sys/block/vda/mq; "
        "for part in 0 1 2 3; do dd if=/dev/vdb of=/dev/vda bs=64k count=16 "
        "skip=$((part * 16)) seek=$((64 + part * 16)) conv=notrunc,fsync 2>/dev/null & done; "
        "wait; md5sum /dev/vda; "
        "dd if=/dev/vda of=/dev/vdb count=1 2>/dev/null || echo refused"
    )
    disks = ["--disk", f"{there(image)},queues=4,serial=PYVMM-1", "--disk", f"{there(other)},ro"]
    status, text = run(host, script, "poweroff", "--cpus", "4", *disks)
    assert status == 0, text
    expected = data[: 4 << 20] * 2
    before, after = (hashlib.md5(each).hexdigest() for each in (data, expected))  # noqa: S324
    assert text.count(before) == 2
    assert text.count(after) == 1
    assert "PYVMM-1" in text
    assert "refused" in text
    assert hashlib.md5(image.read_bytes()).hexdigest() == after  # noqa: S324
    assert other.read_bytes() == data
    assert "virtio-needs-reset" not in events(host)
    status, text = run(host, "md5sum /dev/vda", "reboot", "--no-reboot", *disks[:2])
    assert status == 0
    assert after in text


def test_a_guest_without_devices_sees_none(host: Host) -> None:
    status, text = run(host, "ls /sys/bus/virtio/devices | wc -l", "poweroff")
    assert status == 0
    assert "\n0\r\n" in text
