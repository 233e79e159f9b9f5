"""Devices that Debian's own daemons serve in the lab host, with a stock guest kernel."""

from __future__ import annotations

import json
import re
import subprocess
import time
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
    reboot_guest,
    shell,
)
from vmm.lab.guest import fixture
from vmm.lab.host import packages
from vmm.lab.host.emulated_host import Host
from vmm.library.command import Command

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
LEAKS = 3
"""Exit status of qemu-img check: the image is whole, but has leaked clusters."""


@pytest.fixture
def host(lab_host: Callable[[str], Host]) -> Host:
    host = lab_host("fwb")
    packages.install(host, ["passt", "qemu-utils", "virtiofsd"])
    shell(host, "mkdir -p /run/disks /run/tmp; rm -rf /run/disks/* /run/tmp/shared")
    return host


def events(host: Host) -> list[dict[str, object]]:
    return [json.loads(line) for line in shell(host, f"cat {EVENTS}").splitlines()]


def names(host: Host) -> list[object]:
    return [event["event"] for event in events(host)]


def kill_daemon(host: Host) -> None:
    """Kill the daemon that was started last."""
    (*_, pid) = (event["pid"] for event in events(host) if event["event"] == "daemon-started")
    shell(host, f"kill -9 {pid}")


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def daemons(host: Host) -> str:
    return shell(host, "ps | grep -e [v]irtiofsd -e [q]emu-storage || true")


def test_a_file_system_on_qcow2_outlives_a_reboot(host: Host) -> None:
    shell(host, "qemu-img create -q -f qcow2 /run/disks/disk 48M")
    assert_survived(boot(host, reboot_guest(), "--disk", "/run/disks/disk,queues=4"))
    assert "No errors were found" in shell(host, "qemu-img check /run/disks/disk")
    assert daemons(host) == ""


WRITING = """
mkdir -p /dev/shm
verify="--thread --ioengine=libaio --direct=1 --rw=randrw --bsrange=512-64k --size=5M --iodepth=16
    --verify=crc32c --verify_fatal=1 --group_reporting --minimal"
until read -r -t 1 enough; do
    echo working
    fio $verify --name=two --filename=/dev/vda --numjobs=2 --offset_increment=8M >/tmp/two 2>&1
    echo "fio: $?"
done
echo "in flight: $(cat /sys/block/vda/inflight)"
dmesg | grep -i -e "I/O error"
"""


def test_no_request_is_lost_or_done_twice_when_a_disks_daemon_is_killed(host: Host) -> None:
    """Two queues, up to 32 requests in flight: fio verifies what it wrote."""
    shell(host, "qemu-img create -q -f qcow2 /run/disks/disk 32M")
    guest = fixture.guest(KERNEL, modules=MODULES, packages=["fio"], script=WRITING)
    options = ["--cpus", "2", "--disk", "/run/disks/disk,queues=2"]
    with Command(host, command(guest, *options, memory="512M")) as talk:
        talk.expect(b"working")
        for lap in range(4):
            time.sleep(2)
            kill_daemon(host)
            eventually(lambda lap=lap: names(host).count("vhost-user-restarted") > lap)  # type: ignore[misc]
        talk.expect(b"fio: ")
        talk.send(b"enough\r")
        talk.expect(b"in flight: +0 +0\r")
        assert talk.finish() == 0
    results = re.findall(rb"fio: ([0-9]+)", talk.output)
    assert set(results) == {b"0"}, talk.story()
    assert b"I/O error" not in talk.output, talk.story()
    assert "virtio-needs-reset" not in names(host)
    check = host.run(["qemu-img", "check", "/run/disks/disk"])
    assert check.status in (0, LEAKS), check
    assert daemons(host) == ""


SHARING = """
mkdir /mnt2
mount -t virtiofs files /mnt
if [ ! -e /mnt/rebooted ]; then
    shared_directory /mnt
    echo "status $?"
    dd if=/dev/urandom of=/mnt/large bs=1M count=24 2>/dev/null
    (cd /mnt; find . -type f | sort | xargs md5sum | md5sum)
    mount -t virtiofs tools /mnt2
    touch /mnt2/new 2>/dev/null || echo "read-only"
    md5sum /mnt2/hosts
    umount /mnt2
    echo up
    exec 3>/mnt/open
    while echo line >&3; do :; done 2>/dev/null
    echo "gone: $(cat /mnt/log 2>&1)"
    exec 3>&-
    umount /mnt
    mount -t virtiofs files /mnt
    (cd /mnt; find . -type f ! -name open | sort | xargs md5sum | md5sum)
    touch /mnt/rebooted
    reboot
fi
(cd /mnt; find . -type f ! -name open ! -name rebooted | sort | xargs md5sum | md5sum)
umount /mnt
"""


def test_a_shared_directory_is_a_file_system(host: Host, tmp_path: Path) -> None:
    """It survives a killed daemon and a reboot."""
    program = tmp_path / "shared_directory"
    compiler = ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Werror", "-static", "-o", str(program)]
    subprocess.run([*compiler, str(HERE / "guest/shared_directory.c")], check=True)
    shell(host, "mkdir /run/tmp/shared")
    guest = fixture.guest(
        KERNEL,
        modules=["virtio_mmio", "virtiofs"],
        files={"bin/shared_directory": program},
        script=SHARING,
    )
    shares = ["--share", "/run/tmp/shared:files", "--share", "/etc:tools,ro"]
    with Command(host, command(guest, *shares)) as talk:
        talk.expect(b"status 0\r\n")
        before = talk.expect(b"([0-9a-f]{32})  -\r")[1]
        talk.expect(b"read-only\r")
        hosts = talk.expect(b"([0-9a-f]{32})  /mnt2/hosts\r")[1]
        assert hosts.decode() in shell(host, "md5sum /etc/hosts")
        talk.expect(b"up\r")
        there = shell(
            host, "cd /run/tmp/shared; find . -type f ! -name open | sort | xargs md5sum | md5sum"
        )
        assert before.decode() in there
        pids = [event["pid"] for event in events(host) if event["event"] == "daemon-started"]
        shell(host, f"kill -9 {pids[0]}")
        talk.expect(b"gone: .*not connected\r")
        for _ in range(2):
            assert talk.expect(b"([0-9a-f]{32})  -\r")[1] == before
        assert talk.finish() == 0
    assert "FAILED" not in talk.output.decode()
    assert talk.output.count(b"ok ") == 7
    assert names(host).count("vhost-user-restarted") == 1
    assert "virtio-needs-reset" not in names(host)
    assert daemons(host) == ""
