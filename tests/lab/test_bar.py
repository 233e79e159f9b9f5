"""``pyvmm run --bar``: what it refuses, what it traps, and a device that goes away."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from vmm.address_range import AddressRange
from vmm.errors import EXIT_HOST, EXIT_USER
from vmm.lab.guest import stock_guest
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF
from vmm.lab.host.session import Completed
from vmm.lab.kernel.flavour import BuiltKernel

pytestmark = [
    pytest.mark.lab,
    pytest.mark.kernels,
    pytest.mark.profile("gh200"),
    pytest.mark.timeout(7200),
]
Hosts = Callable[[str], Host]


def run(host: Host, *arguments: str, then: str = "poweroff", timeout: float = 300) -> Completed:
    return host.run(
        [
            *("pyvmm", "run", str(BuiltKernel("mainline").image()), "--host", "native"),
            *("--initrd", str(stock_guest.initramfs()), *arguments, "--cmdline"),
            f"console=ttyAMA0 quiet panic=-1 {then}"
            if "=" in then
            else f"console=ttyAMA0 quiet panic=-1 pyvmm.then={then}",
        ],
        timeout=timeout,
    )


def only_line(done: Completed) -> str:
    (line,) = done.stderr.decode().splitlines()
    return line


@pytest.mark.profile("gh200-nofwb")
@pytest.mark.parametrize("cache", ["auto", "require"])
def test_without_fwb_a_cacheable_region_is_refused(lab_host: Hosts, cache: str) -> None:
    done = run(lab_host("gh200-nofwb"), "--bar", f"{BDF}:4,cache={cache}")
    assert done.status == EXIT_HOST
    line = only_line(done)
    assert "243" in line
    assert "FEAT_S2FWB" in line
    assert "region 4" in line


@pytest.mark.profile("gh200-nofwb")
def test_without_fwb_it_can_be_trapped(lab_host: Hosts) -> None:
    done = run(lab_host("gh200-nofwb"), "--bar", f"{BDF}:4,cache=forbid")
    assert done.status == 0, done.stderr.decode()


@pytest.mark.profile("rfc")
def test_guest_ram_takes_the_flag_where_the_kernel_has_it(lab_host: Hosts) -> None:
    done = run(lab_host("rfc"), "--memory-write-back", "--bar", f"{BDF}:4")
    assert done.status == 0, done.stderr.decode()


def test_the_flag_is_refused_where_the_kernel_has_none(lab_host: Hosts) -> None:
    done = run(lab_host("gh200"), "--memory-write-back")
    assert done.status == EXIT_HOST
    assert "--memory-write-back" in only_line(done)


@pytest.mark.parametrize(
    ("argument", "status", "word"),
    [
        (f"{BDF}:9", EXIT_USER, "region"),
        (f"{BDF}:7", EXIT_USER, "configuration"),
        (f"{BDF}:4@0x40000000", EXIT_USER, "not above RAM"),
        (f"{BDF}:4@0x100000200", EXIT_USER, "multiple of"),
        (f"{BDF}:4@0x{1 << 60:x}", EXIT_USER, "bits of guest physical"),
        (f"{BDF}:2,cache=require", EXIT_USER, "Normal-NC"),
        ("0000:00:1f.7:0", EXIT_USER, "0000:00:1f.7"),
        ("0000:00:01.0:0", EXIT_USER, "0000:00:01.0"),
        ("nonsense", EXIT_USER, "BDF:REGION"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    lab_host: Hosts, argument: str, status: int, word: str
) -> None:
    done = run(lab_host("gh200"), "--bar", argument)
    assert done.status == status
    assert word in only_line(done)


def test_two_regions_may_not_overlap(lab_host: Hosts) -> None:
    bars = ("--bar", f"{BDF}:4@0x100000000", "--bar", f"{BDF}:2@0x110000000")
    done = run(lab_host("gh200"), *bars)
    assert done.status == EXIT_USER
    taken, second = AddressRange(0x1_0000_0000, 512 << 20), AddressRange(0x1_1000_0000, 1 << 30)
    assert only_line(done) == (
        f"pyvmm: --bar {BDF} region 2: {second} overlaps --bar {BDF} region 4 at {taken}; "
        "leave one of the addresses out, or use another"
    )


def test_a_device_that_is_taken_back_leaves_the_guest_running(
    lab_host: Hosts, tmp_path: Path
) -> None:
    host, events = lab_host("gh200"), tmp_path / "events"
    ended: list[Completed] = []

    def machine() -> None:
        bars = ("--bar", f"{BDF}:4", "--bar", f"{BDF}:2", "--events", str(events))
        ended.append(run(host, *bars, then='pyvmm.run="sleep 8" pyvmm.then=poweroff'))

    thread = Thread(target=machine)
    thread.start()
    driver = f"/sys/bus/pci/devices/{BDF}/driver"
    try:
        deadline = time.monotonic() + 120
        while not events.exists() or '"power-on"' not in events.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        unbind = f"d=$(readlink -f {driver}); echo {BDF} >{driver}/unbind; echo $d"
        taken = host.run(["sh", "-c", unbind], timeout=120)
        thread.join(300)
    finally:
        back = f"echo {BDF} > {taken.stdout.decode().strip()}/bind"
        assert host.run(["sh", "-c", back]).status == 0
    assert ended[0].status == 0, ended[0].stderr.decode()
    seen = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert "device-removed" in seen
    assert seen[-1] == "ended"
