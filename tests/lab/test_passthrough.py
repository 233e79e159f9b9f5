"""Passthrough of QEMU's devices behind an emulated SMMU, used by drivers of Debian's kernels."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest import flat_guest, flat_pci_guest
from tests.lab.hosts import HUGE_SIZE
from vmm.lab.guest import fixture
from vmm.lab.guest.fixture import Guest
from vmm.lab.host import gh200
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import Completed

pytestmark = [
    pytest.mark.lab,
    pytest.mark.profile("passthrough"),
    pytest.mark.timeout(1800),
]

HERE = Path(__file__).parent
EVENTS = "/run/tmp/passthrough-events"
EDU, DISK, DISPLAY, CARD, USB, HUGE = (f"0000:00:{slot:02x}.0" for slot in (16, 17, 18, 20, 22, 24))
"""Devices of the host; the guest has them in slots 1, 2... in the order of the options."""

SECOND_EDU = "0000:00:12.0"

DATA = "".join(f"{number}\n" for number in range(1, 200_000)).encode()[: 1 << 20]
MAKE_DATA = "seq 1 199999 | head -c 1048576"


@pytest.fixture(scope="module")
def host(lab_host: Callable[[str], Host]) -> Host:
    return lab_host("passthrough")


def program(directory: Path, name: str) -> Path:
    """Compile one of the programs for guests; return its path."""
    built = directory / name
    source = HERE / "guest" / f"{name.replace('-', '_')}.c"
    command = ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Werror", "-static", "-o"]
    subprocess.run([*command, str(built), str(source)], check=True)
    return built


def make(directory: Path, script: str, *, modules: tuple[str, ...], flavour: str = "") -> Guest:
    names = ("edu", "bar-memory")
    files = {f"bin/{name}": program(directory, name) for name in names}
    return fixture.guest(
        modules=modules, packages=["pciutils"], files=files, script=script, flavour=flavour
    )


def run(host: Host, guest: Guest, *options: str) -> str:
    """Run *guest* until it powers off; return its console output."""
    done = host.run(
        [
            *("pyvmm", "run", f"/host{guest.kernel}", "--host", "native"),
            *("--initrd", f"/host{guest.initrd}", "--events", EVENTS, *options),
            *("--cmdline", "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"),
        ],
        timeout=600,
    )
    said = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    assert done.status == 0, said + done.stderr.decode()
    return said


def events(host: Host, name: str = "") -> list[dict[str, Any]]:
    lines = host.run(["cat", EVENTS], timeout=60).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return [event for event in found if name in ("", event["event"])]


def shell(host: Host, script: str) -> str:
    done = host.run(["sh", "-c", script], timeout=300)
    assert done.status == 0, done.stderr.decode()
    return done.stdout.decode()


def part(said: str, name: str) -> str:
    """Return the guest's output between ``-- name`` and the next ``--``."""
    return said.partition(f"-- {name}\n")[2].partition("\n-- ")[0]


def count(table: str, what: str) -> int:
    """Return how many interrupts a line of /proc/interrupts has, on all CPUs."""
    (line,) = (line for line in table.splitlines() if line.endswith(f" {what}"))
    return sum(int(word) for word in takewhile(str.isdecimal, line.split()[1:]))


# --- drivers of a Debian kernel's ---------------------------------------------------------------

WORK = f"""
echo '-- pci'
lspci -n
grep 'nvme0q[1-9]' /proc/interrupts >/tmp/before
echo '-- disk'
dd if=/dev/nvme0n1 bs=64k count=64 2>/dev/null | md5sum
{MAKE_DATA} >/tmp/data
dd if=/tmp/data of=/dev/nvme0n1 bs=64k seek=64 conv=fsync 2>/dev/null
dd if=/dev/nvme0n1 bs=64k skip=64 count=16 2>/dev/null | md5sum
echo '-- before'
cat /tmp/before
echo '-- after'
grep 'nvme0q[1-9]' /proc/interrupts
echo '-- reset'
cat /sys/bus/pci/devices/0000:00:01.0/reset_method
echo 1 >/sys/bus/pci/devices/0000:00:01.0/reset
dd if=/dev/nvme0n1 bs=64k skip=64 count=16 iflag=direct 2>/dev/null | md5sum
echo '-- network'
ifconfig eth0 10.9.0.2 up
for second in 1 2 3 4 5 6 7 8 9 10; do
    ping -c 1 -w 2 10.9.0.1 >/dev/null && break
done
wget -q -O - http://10.9.0.1:8000/data | md5sum
cat /proc/interrupts >/tmp/messages
rmmod e1000e
modprobe e1000e IntMode=0
ifconfig eth0 10.9.0.2 up
for second in 1 2 3 4 5 6 7 8 9 10; do
    ping -c 1 -w 2 10.9.0.1 >/dev/null && break
done
wget -q -O - http://10.9.0.1:8000/data | md5sum
echo '-- messages'
cat /tmp/messages
echo '-- edu'
echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
edu /sys/bus/pci/devices/0000:00:03.0 /dev/uio0
echo '-- huge'
echo 1 >/sys/bus/pci/devices/0000:00:05.0/enable
grep . /sys/bus/pci/devices/0000:00:05.0/resource
bar-memory /sys/bus/pci/devices/0000:00:05.0/resource2_wc 0x40000000
echo '-- interrupts'
cat /proc/interrupts
echo '-- end'
"""
WWW = "/run/tmp/www"

READ_AGAIN = f"""
for tenth in $(seq 1200); do
    # The host's driver needs time, and its previous number may still be taken.
    disk=/dev/$(ls -d /sys/bus/pci/devices/{DISK}/nvme/nvme*/nvme* | sed 's|.*/||')
    [ -b "$disk" ] && break
    sleep 0.1
done 2>/dev/null
[ -b "$disk" ] || {{ ls -l /sys/bus/pci/devices/{DISK}/; dmesg | tail -n 60; exit 1; }} >&2
dd if=$disk bs=64k skip=%d count=16 2>/dev/null | md5sum
"""


@pytest.fixture(scope="module")
def work(host: Host, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the output of a guest that uses five devices at once, through the group interface."""
    guest = make(
        tmp_path_factory.mktemp("guest"),
        WORK,
        modules=("nvme", "e1000e", "uio_pci_generic", "xhci_pci"),
    )
    shell(host, f"mkdir -p {WWW}; {MAKE_DATA} >{WWW}/data; httpd -p 8000 -h {WWW}")
    shell(host, "ifconfig eth1 10.9.0.1 up")
    devices = [("--vfio", f"{bdf},bind") for bdf in (DISK, CARD, EDU, USB, HUGE)]
    return run(host, guest, "--cpus", "2", *(word for pair in devices for word in pair))


def test_a_guest_sees_the_devices_and_nothing_else(work: str) -> None:
    seen = [line.split()[2] for line in part(work, "pci").splitlines()]
    assert seen == ["1b36:0010", "8086:10d3", "1234:11e8", "1033:0194", "1af4:1110"]


def test_its_nvme_driver_reads_and_writes_the_disk(work: str, host: Host) -> None:
    """The data is still there when the host's driver has the disk again."""
    zeroes = hashlib.md5(bytes(4 << 20)).hexdigest()  # noqa: S324
    written = hashlib.md5(DATA).hexdigest()  # noqa: S324
    assert [line.split()[0] for line in part(work, "disk").splitlines()] == [zeroes, written]
    assert shell(host, READ_AGAIN % 64).split()[0] == written


def test_a_function_reset_by_the_guest_resets_the_device(work: str) -> None:
    method, found = part(work, "reset").splitlines()
    assert method == "flr"
    assert found.split()[0] == hashlib.md5(DATA).hexdigest()  # noqa: S324


def test_messages_arrive_by_msix_and_by_msi(work: str) -> None:
    before, queues = (
        [line.split()[-1] for line in part(work, name).splitlines()] for name in ("before", "after")
    )
    assert before == queues == ["nvme0q1", "nvme0q2"]
    # The CPU that submits a request determines its queue.
    was, now = (
        sum(count(part(work, name), queue) for queue in queues) for name in ("before", "after")
    )
    assert now > was + 8
    after = part(work, "interrupts")
    assert count(part(work, "messages"), "eth0-rx-0") > 10
    assert "PCI-MSIX-0000:00:01.0" in after
    (usb,) = (line for line in after.splitlines() if line.endswith("xhci_hcd"))
    assert "PCI-MSI-0000:00:04.0" in usb
    assert count(after, "xhci_hcd") > 0


def test_a_network_card_carries_traffic(work: str) -> None:
    """By MSI, and by INTx, which is a level that KVM holds until the guest's end of interrupt."""
    sums = [line.split()[0] for line in part(work, "network").splitlines()]
    assert sums == [hashlib.md5(DATA).hexdigest()] * 2  # noqa: S324
    (line,) = (
        line for line in part(work, "interrupts").splitlines() if line.endswith("Level     eth0")
    )
    assert int(line.split()[1]) + int(line.split()[2]) > 10


def test_a_program_uses_edu_by_registers_dma_and_its_pin(work: str, host: Host) -> None:
    said = part(work, "edu")
    assert "edu: 0 errors" in said
    assert said.count(": good") == 9
    assert count(part(work, "interrupts"), "uio_pci_generic") == 12
    # The SMMU stopped its DMA outside the guest's memory.
    assert f"F_TRANSLATION client: {EDU}" in shell(host, "dmesg")


def test_a_bar_of_128_gib_is_placed_and_used(work: str, host: Host) -> None:
    said = part(work, "huge")
    start, end = (int(word, 16) for word in said.splitlines()[2].split()[:2])
    assert end - start + 1 == HUGE_SIZE
    assert start % HUGE_SIZE == 0
    assert f"bar-memory: {HUGE_SIZE >> 20} MiB, 0 errors" in said
    opened = events(host, "vfio-device")
    before, event = opened[-2:]
    assert event["device"] == HUGE
    assert event["mapped"] == [2]
    moments = [datetime.fromisoformat(one["timestamp"]) for one in (before, event)]
    assert moments[1] - moments[0] < timedelta(seconds=2), "in a time that its size has no part in"


def test_events_say_which_interface_and_how_much_memory(work: str, host: Host) -> None:
    assert work
    (backend,) = events(host, "vfio-backend")
    assert backend["backend"] == "group"
    assert "makes no device file" in backend["because"]
    assert [event["bytes"] for event in events(host, "vfio-dma")] == [512 << 20]
    unresettable = {event["device"] for event in events(host, "vfio-no-reset")}
    assert unresettable == {EDU, HUGE} | (unresettable & {USB})
    assert not events(host, "pci-bar-refused")


def test_devices_are_given_back_as_they_were(work: str, host: Host) -> None:
    assert work
    listed = shell(host, "pyvmm vfio list --no-open")
    assert "bound by pyvmm" not in listed
    drivers = {line.split()[0]: line for line in listed.splitlines() if line.startswith("0000")}
    assert "nvme, group" in drivers[DISK]
    assert "e1000e, group" in drivers[CARD]
    assert "no driver, group" in drivers[EDU]


# --- guests of a few instructions ---------------------------------------------------------------


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    def build(name: str, source: str) -> Path:
        directory = tmp_path_factory.mktemp(name)
        return flat_guest.assemble(directory, flat_pci_guest.SLOT + source)

    return build


UNPLUG = f"""
pyvmm vfio bind {EDU} >/dev/null
set -- --memory 64M --vfio {EDU} --events {EVENTS}
pyvmm run --host native "$@" /host{{image}} >/run/tmp/out 2>&1 &
until grep -q Y /run/tmp/out; do sleep 0.2; done
echo {EDU} >/sys/bus/pci/devices/{EDU}/driver/unbind
wait $!
echo $?
cat /run/tmp/out
pyvmm vfio unbind {EDU} >/dev/null
"""


def test_a_device_that_the_host_takes_is_gone_for_the_guest_which_lives(
    host: Host, flat: Callable[[str, str], Path]
) -> None:
    """After a reset the machine has no such device."""
    image = flat("unplugged", flat_pci_guest.AGAIN + flat_pci_guest.UNPLUGGED)
    status, _, said = shell(host, UNPLUG.format(image=image)).partition("\n")
    assert status == "0", said
    assert said.startswith("Y")
    assert said.endswith("G")
    assert "the host took 0000:00:10.0 back" in said
    assert [event["device"] for event in events(host, "device-removed")] == [EDU]


COUNT_FROM_ZERO = f"""
import mmap, os
device = "/sys/bus/pci/devices/{EDU}/"
open(device + "enable", "w").write("1")
registers = mmap.mmap(os.open(device + "resource0", os.O_RDWR | os.O_SYNC), 4096)
memoryview(registers).cast("I")[1] = 0xFFFFFFFF
open(device + "enable", "w").write("0")
"""


def test_device_and_guest_have_the_same_pages_after_each_reset(
    host: Host, flat: Callable[[str, str], Path]
) -> None:
    """A reset discards RAM, so both the pinned pages and the guest's must be the new ones."""
    image = flat("resets", flat_pci_guest.RESETS)
    shell(host, f"python3 -I -c '{COUNT_FROM_ZERO}'")
    done = host.run(
        [
            *("pyvmm", "run", f"/host{image}", "--host", "native", "--memory", "64M"),
            *("--vfio", f"{EDU},bind", "--events", EVENTS),
        ],
        timeout=120,
    )
    assert done.status == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stdout == b"DDD"
    assert [event["bytes"] for event in events(host, "vfio-dma")] == [64 << 20] * 4


def test_a_hostile_guest_gets_events_and_nothing_of_the_hosts(
    host: Host, flat: Callable[[str, str], Path]
) -> None:
    image = flat("hostile", flat_pci_guest.HOSTILE)
    options = [word for bdf in (EDU, DISK) for word in ("--vfio", f"{bdf},bind")]
    done: Completed = host.run(
        [
            *("pyvmm", "run", f"/host{image}", "--host", "native", "--memory", "64M"),
            *("--cpus", "2", "--events", EVENTS, *options),
        ],
        timeout=120,
    )
    assert done.status == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stdout.endswith(b"K")
    names = {event["event"] for event in events(host)}
    assert "vcpu-failed" not in names
    refused = {event["address"] for event in events(host, "pci-bar-refused")}
    assert {0x4000_0000, 0x0900_0000, 0x3F00_0000} <= refused
    messages = events(host, "msi-refused")
    assert {event["address"] for event in messages} == {0x4000_0000}
    assert len(messages) <= 100, "each event could fill a disk"


# --- again and again ----------------------------------------------------------------------------


def test_a_disk_is_passed_twenty_times_and_nothing_leaks(
    host: Host, flat: Callable[[str, str], Path]
) -> None:
    image = flat("tiny", flat_guest.POWER_OFF)
    source = (HERE / "inside" / "vfio_rounds.py").read_bytes()
    began = time.monotonic()
    done = host.run(["python3", "-", f"/host{image}", DISK, "20"], stdin=source, timeout=300)
    assert done.status == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["endings"] == ["powered-off"] * 20
    assert found["drivers"] == ["nvme"] * 20
    assert found["leaked"] == [0, 0, 0], "files, mappings, processes"
    assert time.monotonic() - began < 120


# --- a GPU, and iommufd -------------------------------------------------------------------------

GPU_WORK = f"""
echo '-- gpu'
lspci -vv -s 1 2>/dev/null
echo 1 >/sys/bus/pci/devices/0000:00:01.0/enable
bar-memory /sys/bus/pci/devices/0000:00:01.0/resource4_wc 8 normal
bar-memory /sys/bus/pci/devices/0000:00:01.0/resource2_wc 0x100000
echo '-- peers'
echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
read -r start rest </sys/bus/pci/devices/0000:00:01.0/resource
edu /sys/bus/pci/devices/0000:00:03.0 /dev/uio0 /sys/bus/pci/devices/0000:00:01.0 $start
echo '-- numa'
cat /sys/devices/system/node/possible
echo '-- disk'
{MAKE_DATA} >/tmp/data
dd if=/tmp/data of=/dev/nvme0n1 bs=64k seek=16 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/nvme0n1 bs=64k skip=16 count=16 2>/dev/null | md5sum
echo '-- interrupts'
cat /proc/interrupts
echo '-- end'
"""
MARK = 0x434F4845524E5421
READ_BACK = f"""
from vmm.vfio.device import open_device
with open_device({gh200.BDF!r}) as device:
    device.enable_memory()
    region = device.region(4)
    wrong = [at for at in range(0, region.size, 1 << 20)
             if int.from_bytes(region.read_bytes(at, 8), "little") != at ^ {MARK:#x}]
    print(len(wrong), "wrong of", region.size >> 20)
"""


@pytest.mark.kernels
@pytest.mark.profile("gh200-passthrough")
@pytest.mark.timeout(7200)
def test_a_gpu_whole_with_its_memory_write_back_and_a_disk_through_iommufd(
    lab_host: Callable[[str], Host], tmp_path: Path
) -> None:
    guest = make(tmp_path, GPU_WORK, modules=("nvme", "uio_pci_generic"))
    host = lab_host("gh200-passthrough")
    said = run(
        host,
        guest,
        "--verify",
        *("--vfio", f"{gh200.BDF},cache=require"),
        *("--vfio", f"{DISK},bind", "--vfio", f"{SECOND_EDU},bind"),
    )
    gpu = part(said, "gpu")
    for index, size, kind in ((0, "16M", 32), (2, "1G", 64), (4, "512M", 64)):
        (line,) = (line for line in gpu.splitlines() if f"Region {index}:" in line)
        assert f"[size={size}]" in line
        assert f"({kind}-bit, prefetchable)" in line
    assert "bar-memory: 512 MiB, 0 errors" in gpu
    assert "bar-memory: 1024 MiB, 0 errors" in gpu
    verdicts = {event["what"]: event["memory_type"] for event in events(host, "verdict")}
    regions = {f"{gh200.BDF} region {index}": kind for index, kind in ((0, "NC"), (2, "NC"))}
    assert verdicts.items() >= {**regions, f"{gh200.BDF} region 4": "forced WB"}.items()
    blocks = {event["what"]: event["mapped"] for event in events(host, "stage2-blocks")}
    assert blocks[f"{gh200.BDF} region 4"] == {str(2 << 20): 512 << 20}
    assert "edu: what it got: good" in part(said, "peers"), "DMA from device to device"
    assert "edu: 0 errors" in part(said, "peers")
    peers = {event["what"]: event["mapped"] for event in events(host, "vfio-peer")}
    assert peers[f"{gh200.BDF} region 0"] is True
    assert part(said, "numa").split() == ["0-1"], "a node for the GPU's memory"
    assert [event["backend"] for event in events(host, "vfio-backend")] == ["iommufd"]
    assert part(said, "disk").split()[0] == hashlib.md5(DATA).hexdigest()  # noqa: S324
    assert count(part(said, "interrupts"), "nvme0q1") > 8
    seen = host.run(["python3", "-c", READ_BACK], timeout=300)
    assert seen.stdout == b"0 wrong of 512\n", seen.stderr.decode()
    again = shell(host, READ_AGAIN % 16)
    assert again.split()[0] == hashlib.md5(DATA).hexdigest()  # noqa: S324
