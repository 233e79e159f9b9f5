"""The policy is no larger than what machines need: whatever it allows, one of them does."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filters
import pytest

from tests.lab.storage import shell
from vmm.lab.guest import fixture
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

CENSUS = Path(__file__).parent / "inside" / "census_run.py"
POLICY: dict[str, Any] = tomllib.loads(filters.POLICY.read_text())
ALLOWED = {
    *filters.names(POLICY, "calls", "loop"),
    *(f"ioctl({name})" for name in filters.names(POLICY, "ioctls", "loop")),
} - {"ioctl"}
RARE = {*POLICY["rare"]}
PASSED_THROUGH = {each for each in ALLOWED if each.startswith(("ioctl(VFIO_", "ioctl(IOMMU_"))}

MODULES = (
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ext4"),
    *("virtio_rng", "virtio_balloon", "virtio_pmem", "nd_pmem", "virtiofs"),
    "vmw_vsock_virtio_transport",
)
SCRIPT = """
[ "$(head -c 5 /dev/vda)" = again ] && again=1
for each in 0 1 2; do ip link set eth$each up; ip addr add 192.168.9$each.2/24 dev eth$each; done
for each in 0 1; do ping -c 2 192.168.9$each.1 | grep received; done
echo x | socat - TCP:192.168.92.1:9,connect-timeout=1
mount -t virtiofs files /mnt && echo x >/mnt/file && cat /mnt/file && echo shared
for disk in vda vdb; do
    [ -b /dev/$disk ] || continue
    dd if=/dev/urandom of=/dev/$disk bs=64k count=16 conv=fsync 2>/dev/null
    /usr/sbin/blkdiscard -l 65536 /dev/$disk
    /usr/sbin/blkdiscard -z -o 65536 -l 65536 /dev/$disk
    echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/$disk
done
echo hello >/dev/hvc0; echo hello >/dev/hvc1; echo hello >/dev/hvc2
head -c 4 /dev/hwrng | md5sum
dd if=/dev/zero of=/dev/pmem0 bs=4k count=4 conv=fsync 2>/dev/null
echo again | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
echo done; [ "$again" ] || reboot
"""


@pytest.fixture
def host(lab_host: Callable[[str], Host], request: pytest.FixtureRequest) -> Host:
    marker = request.node.get_closest_marker("profile")
    host = lab_host(marker.args[0] if marker else "fwb")
    packages.install(host, ["passt", "qemu-utils", "virtiofsd"])
    return host


def census(host: Host, *options: str) -> set[str]:
    """Run a machine that works and resets; return its calls. It imported nothing late."""
    shell(
        host,
        "rm -rf /run/tmp/census; mkdir -p /run/tmp/census/shared; cd /run/tmp/census;"
        "truncate -s 4M raw; qemu-img create -q -f qcow2 qcow2 4M",
    )
    guest = fixture.guest(modules=MODULES, packages=["socat", "util-linux"], script=SCRIPT)
    command = ["python3", inside(CENSUS), "found", "socket", "run", "--host", "native"]
    command += ["--cpus", "2", "--memory", "512M", "--events", "events", *options]
    command += ["--cmdline", "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"]
    command += ["--initrd", f"/host{guest.initrd}", f"/host{guest.kernel}"]
    done = host.run(
        ["sh", "-c", 'cd /run/tmp/census; exec "$@"', "sh", *command], stdin=b"x\n", timeout=900
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert done.status == 0, text
    assert text.count("done\r\n") == 2, text
    found = json.loads(shell(host, "cat /run/tmp/census/found"))
    assert not found["late"]
    return {call for call, _ in found["seen"]}


DEVICES = [
    *("--rng", "--balloon-size", "32M", "--vsock", "79", "--pmem", "pmem,size=16M"),
    *("--disk", "raw", "--disk", "qcow2", "--share", "shared:files", "--net", "user"),
    *("--net", "tap,address=192.168.90.1/24,vhost=off", "--net", "tap,address=192.168.91.1/24"),
    *("--console", "unix=socket", "--console", "pty", "--console", "file=text"),
    *("--trace", "trace", "--memory-dump", "dump", "--watchdog", "60", "--gdb", "debugger"),
]


def test_whatever_the_policy_allows_a_machine_does(host: Host) -> None:
    """One with every device, on virtio-mmio and on PCI; those passed through are below."""
    seen = census(host, *DEVICES) | census(host, "--transport", "pci", *DEVICES)
    assert seen <= ALLOWED
    assert RARE <= ALLOWED
    assert seen >= ALLOWED - RARE - PASSED_THROUGH
