"""Disks (and networks) of guests in the emulated host, with pyvmm and with others, in turns.

Same host, same guest, same disk image in the host's memory. Requests are made by a small program
in the guest (bench_disk.c), not by fio, which on an emulated CPU takes longer for a request than
a disk does.

Rates are those of an emulated machine: only ratios mean something, taken pair by pair.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench_lab import qemu
from bench_report import Report, median

from vmm.errors import HostError
from vmm.lab import cache, command, fixture, profiles
from vmm.lab.host import Host
from vmm.lab.session import inside
from vmm.lab.wheel import COMPILER

if TYPE_CHECKING:
    import argparse

ROUNDS = 3
MEMORY = 256
DISK = 128
"""MiB."""
SECONDS = 2
CMDLINE = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
TIMEOUT = 3600.0

PYVMM = (
    "pyvmm run --host native --memory {memory}M --disk {disk} --initrd {initrd} "
    "--cmdline {cmdline} {kernel}"
)
QEMU = (
    "/run/bench/qemu/start -accel kvm -cpu host -M virt,gic-version=host -nographic -nic none "
    "-m {memory} -global virtio-mmio.force-legacy=false -drive file={disk},format=raw,if=none,id=d "
    "-device virtio-blk-device,drive=d -kernel {kernel} -initrd {initrd} -append {cmdline}"
)
"""The same transport as pyvmm's, and QEMU's own idea of a cache and of threads."""


class Load(NamedTuple):
    """What is done to the disk: *depth* requests of *size* bytes under way."""

    name: str
    mode: str
    pattern: str
    size: int
    depth: int

    def command(self) -> str:
        """Return what the guest runs."""
        return (
            f"bench-disk /dev/vda {self.mode} {self.pattern} {self.size} {self.depth} {SECONDS}\n"
        )


LOADS = (
    Load("4k random read, 32 at a time", "read", "random", 4096, 32),
    Load("4k random write, 32 at a time", "write", "random", 4096, 32),
    Load("4k random read, one at a time", "read", "random", 4096, 1),
    Load("1M sequential read", "read", "sequential", 1 << 20, 4),
    Load("1M sequential write", "write", "sequential", 1 << 20, 4),
)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures for disks to *report*."""
    vmms = {"pyvmm": shlex.split(PYVMM)}
    programs = []
    for peer in options.peer or ["qemu"]:
        words = shlex.split(QEMU if peer == "qemu" else peer)
        name = "QEMU" if peer == "qemu" else Path(words[0]).name
        vmms[f"{name} (peer)" if name in vmms else name] = words
        if peer == "qemu":
            programs.append(inside(qemu()))
    guest = fixture.guest(
        "6.12",
        modules=["virtio_mmio", "virtio_pci", "virtio_blk"],
        files={"bin/bench-disk": program("bench_disk")},
        script="".join(load.command() for load in LOADS),
    )
    kernel = options.kernel[0] if options.kernel else guest.kernel
    with Host.start(profiles.profile(options.profile)) as host:
        task = {
            "files": {"kernel": inside(kernel), "initrd": inside(guest.initrd)},
            "values": {"cmdline": CMDLINE, "memory": str(MEMORY)},
            "disk": DISK << 20,
            "rounds": options.rounds or ROUNDS,
            "programs": programs,
            "vmms": vmms,
        }
        group = f"a disk of a guest in the emulated host ({options.profile})"
        add(report, group, _run(host, task))


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


def rates(said: str) -> dict[Load, float]:
    """Return requests a second for each load, from what one guest said."""
    found = {}
    for load in LOADS:
        label = f"{load.mode} {load.pattern} {load.size} {load.depth}"
        match = re.search(rf"bench-disk {label}: (\d+) requests in ([\d.]+) seconds", said)
        if match is None:
            raise HostError(f"a guest did not get to {load.name!r}: {said.strip()[-300:]}")
        found[load] = int(match[1]) / float(match[2])
    return found


def add(report: Report, group: str, said: dict[str, list[str]]) -> None:
    """Add rates, and ratios of each pair, to *report*; *said* is by VMM what its guests said."""
    laps = {vmm: [rates(each) for each in guests] for vmm, guests in said.items()}
    for load in LOADS:
        large = load.size >= 1 << 20
        scale, unit = (load.size / 1e6, "MB/s") if large else (1.0, "requests/s")
        for vmm, rows in laps.items():
            samples = [row[load] * scale for row in rows]
            report.add(median(samples, group=group, name=f"{vmm}: {load.name}", unit=unit))
        for peer in laps.keys() - {"pyvmm"}:
            pairs = zip(laps["pyvmm"], laps[peer], strict=True)
            ratios = [ours[load] / theirs[load] for ours, theirs in pairs]
            name = f"{load.name}, pyvmm by {peer}"
            target = 1.0 if peer == "QEMU" else None
            report.add(median(ratios, group=group, name=name, unit="x", at_least=target))
