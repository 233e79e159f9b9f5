"""Disks and networks of guests in the emulated host, with pyvmm and with others, in turns.

Same host, same guest, same disk image in the host's memory, same TAP interface. Requests are made
by small programs in the guest (bench_disk.c, bench_net.c), not by fio and iperf3, which on an
emulated CPU take longer for a request than a device does.

Rates are those of an emulated machine: only ratios mean something, taken pair by pair.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from bench_lab import qemu
from bench_report import Report, median

from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.guest import fixture
from vmm.lab.host import profiles
from vmm.lab.host.arm64_native import COMPILER
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

ROUNDS = 3
MEMORY = 256
DISK = 128
"""MiB."""
SECONDS = 2
CMDLINE = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
TIMEOUT = 3600.0

PYVMM = (
    "pyvmm run --host native --memory {memory}M --transport {transport} --disk {disk} "
    "--net tap={tap} --initrd {initrd} --cmdline {cmdline} {kernel}"
)
QEMU = (
    "/run/bench/qemu/start -accel kvm -cpu host -M virt,gic-version=host -nographic -nodefaults "
    "-serial stdio -m {memory} -global virtio-mmio.force-legacy=false "
    "-global virtio-net-pci.romfile= "
    "-drive file={disk},format=raw,if=none,id=d -device virtio-blk-{suffix},drive=d "
    "-netdev tap,id=n,ifname={tap},script=no,downscript=no,vhost=on "
    "-device virtio-net-{suffix},netdev=n -kernel {kernel} -initrd {initrd} -append {cmdline}"
)
"""The same transport as pyvmm's, and QEMU's own idea of a cache and of threads."""

TRANSPORTS = {"mmio": "device", "pci": "pci"}
"""pyvmm's name of each, and the suffix of QEMU's devices for it."""


class Load(NamedTuple):
    """A program that a guest runs for some seconds, and its unit."""

    name: str
    command: str
    """Its command line without the seconds; the start of the line that it prints."""
    device: str
    """The device that it needs: a placeholder of the VMM's command line."""
    unit: str
    scale: float = 1.0
    """Multiplies the printed number to give *unit*."""


def _disk(name: str, mode: str, pattern: str, size: int, depth: int) -> Load:
    """Return a load of a disk: *depth* requests of *size* bytes under way."""
    large = size >= 1 << 20
    scale, unit = (size / 1e6, "MB/s") if large else (1.0, "requests/s")
    return Load(name, f"bench-disk {mode} {pattern} {size} {depth}", "disk", unit, scale)


LOADS = (
    _disk("4k random read, 32 at a time", "read", "random", 4096, 32),
    _disk("4k random write, 32 at a time", "write", "random", 4096, 32),
    _disk("4k random read, one at a time", "read", "random", 4096, 1),
    _disk("1M sequential read", "read", "sequential", 1 << 20, 4),
    _disk("1M sequential write", "write", "sequential", 1 << 20, 4),
    Load("TCP, a byte there and back", "bench-net ping", "tap", "1/s"),
    Load("TCP from the guest", "bench-net send", "tap", "MB/s", 1e-6),
    Load("TCP to the guest", "bench-net receive", "tap", "MB/s", 1e-6),
)

HOST, GUEST, PORT = "192.0.2.1", "192.0.2.2", 9000
"""Addresses for documentation (RFC 5737): nobody's."""

SCRIPT = f"""\
run() {{
    program=$1
    shift
    case $program in
    bench-disk) bench-disk /dev/vda "$@" {SECONDS} ;;
    bench-net) bench-net {HOST} {PORT} "$@" {SECONDS} ;;
    esac
}}
if [ -e /sys/class/net/eth0 ]; then
    ifconfig eth0 {GUEST} netmask 255.255.255.0
    # Round trips vary so much here that a connection would be slow for ever after its start.
    echo 0 >/sys/module/tcp_cubic/parameters/hystart
    # The first connection finds out who has which address, and what buffers are good for.
    bench-net {HOST} {PORT} send 1 >/dev/null
fi
"""


def script() -> str:
    """Return what the guest does: all loads for which it has the device."""
    there = {"disk": "-e /dev/vda", "tap": "-e /sys/class/net/eth0"}
    return SCRIPT + "".join(f"[ ! {there[load.device]} ] || run {load.command}\n" for load in LOADS)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures for disks and networks to *report*."""
    vmms = {"pyvmm": shlex.split(PYVMM)}
    programs = []
    for peer in options.peer or ["qemu"]:
        words = shlex.split(QEMU if peer == "qemu" else peer)
        name = "QEMU" if peer == "qemu" else Path(words[0]).name
        vmms[f"{name} (peer)" if name in vmms else name] = words
        if peer == "qemu":
            programs.append(inside(qemu()))
    compare(report, options, vmms, programs, targets={"QEMU": 1.0})


def compare(  # noqa: PLR0913  (what differs between those who call it)
    report: Report,
    options: argparse.Namespace,
    vmms: dict[str, list[str]],
    programs: list[str],
    *,
    ours: str = "pyvmm",
    targets: Mapping[str, float],
) -> None:
    """Add figures for *vmms* to *report*, and how much *ours* has of each other's.

    programs  directories with what they need, and with a program ``install``
    targets   the least ratio to others
    """
    guest = fixture.guest(
        "6.12",
        modules=["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net"],
        files={f"bin/{name.replace('_', '-')}": program(name) for name in PROGRAMS},
        script=script(),
    )
    kernel = options.kernel[0] if options.kernel else guest.kernel
    with Host.start(profiles.profile(options.profile)) as host:
        task = {
            "files": {"kernel": inside(kernel), "initrd": inside(guest.initrd)},
            "values": {
                "cmdline": CMDLINE,
                "memory": str(MEMORY),
                "transport": options.transport,
                "suffix": TRANSPORTS[options.transport],
            },
            "disk": DISK << 20,
            "address": f"{HOST}/24",
            "server": [inside(program("bench_net")), "serve", str(PORT)],
            "rounds": options.rounds or ROUNDS,
            "programs": programs,
            "vmms": vmms,
        }
        group = f"a guest's devices in the emulated host ({options.profile}, {options.transport})"
        devices = {
            name: {device for device in ("disk", "tap") if f"{{{device}}}" in " ".join(words)}
            for name, words in vmms.items()
        }
        add(report, group, _run(host, task), devices, ours=ours, targets=targets)


PROGRAMS = ("bench_disk", "bench_net")


def program(name: str) -> Path:
    """Return the program *name*.c for arm64, static, from the cache. Raises HostError."""
    source = Path(__file__).with_name(f"{name}.c")

    def build(temporary: Path) -> None:
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(temporary)]
        command.run([COMPILER, *options, str(source)])

    key = cache.digest(source.read_text())
    return cache.entry(cache.root() / "guests" / f"{name}-{key}", build)


def _run(host: Host, task: dict[str, Any]) -> dict[str, list[str]]:
    script = inside(Path(__file__).with_name("bench_virtio_inside.py"))
    done = host.run(["python3", script], stdin=json.dumps(task).encode(), timeout=TIMEOUT)
    if done.status:
        text = done.stderr.decode(errors="replace").strip()
        raise HostError(f"the benchmark in the emulated host failed: {text[-500:]}")
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def rates(said: str, devices: set[str]) -> dict[Load, float]:
    """Return how much of its unit each load got in a second, from what one guest said."""
    found = {}
    for load in LOADS:
        if load.device not in devices:
            continue
        match = re.search(rf"{load.command}: (\d+) (?:requests|bytes) in ([\d.]+) seconds", said)
        if match is None:
            raise HostError(f"a guest did not get to {load.name!r}: {said.strip()[-300:]}")
        found[load] = int(match[1]) * load.scale / float(match[2])
    return found


def add(  # noqa: PLR0913  (all independent)
    report: Report,
    group: str,
    said: dict[str, list[str]],
    devices: dict[str, set[str]],
    *,
    ours: str = "pyvmm",
    targets: Mapping[str, float] = MappingProxyType({"QEMU": 1.0}),
) -> None:
    """Add rates, and ratios of each pair, to *report*: those of *ours* by each other's.

    *said* is what each VMM's guests said, *devices* what they had.
    """
    laps = {vmm: [rates(each, devices[vmm]) for each in guests] for vmm, guests in said.items()}
    for load in LOADS:
        rows = {vmm: [lap[load] for lap in each if load in lap] for vmm, each in laps.items()}
        for vmm, samples in rows.items():
            if samples:
                name = f"{vmm}: {load.name}"
                report.add(median(samples, group=group, name=name, unit=load.unit))
        for peer in rows.keys() - {ours}:
            if rows[peer]:
                ratios = [a / b for a, b in zip(rows[ours], rows[peer], strict=True)]
                name = f"{load.name}, {ours} by {peer}"
                target = targets.get(peer)
                report.add(median(ratios, group=group, name=name, unit="x", at_least=target))
