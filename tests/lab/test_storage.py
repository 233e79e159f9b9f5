"""Disks of guests on Debian's stock kernel: what is written stays, and what fails is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.storage import (
    EVENTS,
    KERNEL,
    MODULES,
    assert_survived,
    boot,
    command,
    outcome,
    reboot_guest,
    shell,
)
from vmm.lab.guest import fixture
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    host = lab_host("fwb")
    shell(host, "mkdir -p /run/disks /run/tmp; rm -f /run/disks/*")
    return host


@pytest.mark.parametrize(("cache", "io_uring"), [("writeback", False), ("none", True)])
def test_a_file_system_outlives_a_reboot(host: Host, cache: str, *, io_uring: bool) -> None:
    """With io_uring, and where the host's administrator does not allow it."""
    shell(host, "truncate -s 48M /run/disks/raw")
    shell(host, f"echo {0 if io_uring else 2} >/proc/sys/kernel/io_uring_disabled")
    try:
        assert_survived(boot(host, reboot_guest(), "--disk", f"/run/disks/raw,cache={cache}"))
    finally:
        shell(host, "echo 0 >/proc/sys/kernel/io_uring_disabled")


VERIFY = """
cmp -n 4194304 /dev/vdb /dev/zero && echo hole: zeroes
mkdir -p /dev/shm
verify="--thread --ioengine=libaio --direct=1 --rw=randrw --bsrange=512-64k --size=2M --iodepth=16
    --verify=crc32c --verify_fatal=1 --group_reporting --minimal"
fio $verify --name=one --filename=/dev/vda >/tmp/one 2>&1 & one=$!
fio $verify --name=four --filename=/dev/vdb --numjobs=4 --offset_increment=4M >/tmp/four 2>&1 &
four=$!
wait $one; echo "one queue: $?"
wait $four; echo "four queues: $?"
cat /tmp/one /tmp/four | cut -c-400
for disk in vda vdb; do echo "$disk in flight: $(cat /sys/block/$disk/inflight)"; done
ls /sys/block/vdb/mq
blkdiscard /dev/vdb && echo discarded
"""


def test_no_completion_is_lost_under_load(host: Host) -> None:
    """Four CPUs, two disks, one with a queue and a hole, one with four: fio reads what it wrote."""
    shell(host, "truncate -s 32M /run/disks/one /run/disks/four")
    guest = fixture.guest(KERNEL, modules=MODULES, packages=["fio"], script=VERIFY)
    disks = ["--disk", "/run/disks/one", "--disk", "/run/disks/four,queues=4"]
    said = boot(host, guest, "--cpus", "4", *disks, memory="512M")
    assert said.status == 0, said.text
    assert "hole: zeroes" in said.text, said.text
    assert "one queue: 0\n" in said.text, said.text
    assert "four queues: 0\n" in said.text, said.text
    for disk in ("vda", "vdb"):
        (line,) = (line for line in said.text.splitlines() if line.startswith(f"{disk} in fl"))
        assert line.split()[-2:] == ["0", "0"], said.text
    assert "0  1  2  3" in " ".join(said.text.split()).replace(" ", "  "), said.text
    assert "virtio-needs-reset" not in said.events
    assert "discarded" in said.text
    used = shell(host, "stat -c %b /run/disks/one; stat -c %b /run/disks/four").split()
    assert int(used[0]) > 0
    assert int(used[1]) == 0, "what the guest discards is given back to the host"


FAILURES = """
mkfs.ext4 -qF /dev/vda
mount -o errors=continue /dev/vda /mnt
echo kept >/mnt/kept
sync
echo "$(cat /mnt/kept)" before
dd if=/dev/zero of=/mnt/filler bs=64k count=320 conv=fsync 2>/tmp/full && echo no error
echo "full: $(cat /tmp/full | head -n 1)"
until dd if=/dev/zero of=/dev/vda bs=64k seek=900 count=4 oflag=direct 2>/dev/null; do sleep 1; done
echo there is room again
rm -f /mnt/filler
sync
umount /mnt
fsck.ext4 -fp /dev/vda >/dev/null 2>&1
echo "repaired: $?"
fsck.ext4 -fn /dev/vda >/dev/null 2>&1
echo "fsck: $?"
mount /dev/vda /mnt && cat /mnt/kept && umount /mnt
for at in 0 15 16 31; do
    dd if=/dev/vdb of=/dev/null bs=64k skip=$at count=1 iflag=direct 2>/dev/null
    read=$?
    dd if=/dev/zero of=/dev/vdb bs=64k seek=$at count=1 oflag=direct conv=fsync 2>/dev/null
    echo "at $at: read $read, write $?"
done
"""


def test_errors_of_the_host_are_errors_in_the_guest_and_no_more(host: Host) -> None:
    """A full host disk, until there is room; and a device of which half fails."""
    shell(
        host,
        "mkdir -p /run/small; mount -t tmpfs -o size=24M tmpfs /run/small; "
        "truncate -s 64M /run/small/disk; dd if=/dev/zero of=/run/small/ballast bs=1M count=12; "
        "truncate -s 1M /run/disks/half",
    )
    tool = inside(HERE / "inside" / "failing_disk.py")
    try:
        failing = shell(host, f"python3 {tool} make /run/disks/half 4096 2048").strip()
        guest = fixture.guest(KERNEL, modules=MODULES, packages=["e2fsprogs"], script=FAILURES)
        disks = ["--disk", "/run/small/disk", "--disk", failing]
        # Room is made once the guest has seen that there is none.
        script = (
            '"$@" >/run/tmp/said 2>&1 & vmm=$!; '
            'until grep -q "^full:" /run/tmp/said; do kill -0 $vmm || break; sleep 1; done; '
            "rm /run/small/ballast; status=0; wait $vmm || status=$?; "
            "cat /run/tmp/said; exit $status"
        )
        argv = ["sh", "-c", script, "sh", *command(guest, *disks)]
        said = outcome(host, argv)
    finally:
        shell(host, f"umount /run/small; python3 {tool} remove; rm -f {EVENTS}.none")
    assert said.status == 0, said.text
    assert "kept before\n" in said.text, said.text
    assert "full: dd: " in said.text, said.text
    assert "no error\n" not in said.text, said.text
    assert "there is room again\n" in said.text, said.text
    assert "fsck: 0\n" in said.text, said.text
    assert "\nkept\n" in said.text, said.text
    for good in (0, 15):
        assert f"at {good}: read 0, write 0\n" in said.text, said.text
    for bad in (16, 31):
        assert f"at {bad}: read 1, write 1\n" in said.text, said.text
    assert "disk-error" in said.events
    assert "virtio-needs-reset" not in said.events
