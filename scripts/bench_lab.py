"""A Linux boot in the emulated host, by pyvmm and by others: same kernel, same initrd, in turns.

Times are those of an emulated machine, twenty times slower than a real one, and unevenly so:
only ratios mean something, and times of earlier runs of the same benchmark.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_report import Figure, Report, median

from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.debian import apt
from vmm.lab.guest import stock_guest
from vmm.lab.host import profiles
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside
from vmm.lab.kernel.flavour import BuiltKernel

if TYPE_CHECKING:
    import argparse

ROUNDS = 3
MEMORY = 256
CMDLINE = "console=ttyAMA0 quiet panic=-1 pyvmm.then=poweroff"
TIMEOUT = 3600.0

PYVMM = "pyvmm run --host native --memory {memory}M --initrd {initrd} --cmdline {cmdline} {kernel}"
QEMU = (
    "/run/bench/qemu/start -accel kvm -cpu host -M virt,gic-version=host -nographic -nic none "
    "-m {memory} -kernel {kernel} -initrd {initrd} -append {cmdline}"
)
"""The command line of Debian's manual page, without the network card."""

INSTALL = """\
#!/bin/sh
# Copy QEMU and the libraries it needs from $0's directory into memory, under $1.
from=${0%/*} to=$1/qemu
libraries=$from/usr/lib/aarch64-linux-gnu
loader=$libraries/ld-linux-aarch64.so.1
program=$from/usr/bin/qemu-system-aarch64
[ ! -e "$to" ] || exit 0
mkdir -p "$to/lib"
cp "$loader" "$program" "$to"
cp $("$loader" --library-path "$libraries:$libraries/pulseaudio" --list "$program" |
    sed -n 's/.*=> \\([^ ]*\\) .*/\\1/p') "$to/lib"
cat >"$to/start" <<END
#!/bin/sh
exec $to/ld-linux-aarch64.so.1 --library-path $to/lib $to/qemu-system-aarch64 "\\$@"
END
chmod +x "$to/start"
"""


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures for Linux boots to *report*."""
    peers = options.peer or ["qemu"]
    vmms = {"pyvmm": shlex.split(PYVMM)}
    programs = []
    for peer in peers:
        words = shlex.split(QEMU if peer == "qemu" else peer)
        name = "QEMU" if peer == "qemu" else Path(words[0]).name
        vmms[f"{name} (peer)" if name in vmms else name] = words
        if peer == "qemu":
            programs.append(inside(qemu()))
    kernels = {path.name: path for path in options.kernel or ()} or _kernels()
    with Host.start(profiles.profile(options.profile)) as host:
        for name, path in kernels.items():
            task = {
                "files": {"kernel": inside(path), "initrd": inside(stock_guest.initramfs())},
                "cmdline": CMDLINE,
                "memory": MEMORY,
                "rounds": options.rounds or ROUNDS,
                "programs": programs,
                "vmms": vmms,
            }
            group = f"{name} in the emulated host ({options.profile})"
            _add(report, group, _run(host, task))
            report.add(_from_outside(host, group, options.rounds or ROUNDS))


def _kernels() -> dict[str, Path]:
    """Return the guest kernels to boot: Debian's, and the lab's own small one if it is built."""
    kernels = {"Debian's Linux 6.1": stock_guest.kernel("6.1")}
    small = BuiltKernel("mainline")
    if small.built():
        kernels["the lab's small kernel"] = small.image()
    return kernels


def qemu() -> Path:
    """Return a directory with Debian's QEMU for arm64, unpacked, and how to install it."""
    debs = apt.fetch(["qemu-system-arm"], suite="trixie", arch="arm64", closure=True)

    def build(temporary: Path) -> None:
        apt.unpack(debs, temporary)
        (temporary / "install").write_text(INSTALL)
        (temporary / "install").chmod(0o755)

    key = cache.digest([deb.name for deb in debs], INSTALL)
    return cache.entry(cache.root() / "tools" / f"peer-qemu-{key}", build)


def _from_outside(host: Host, group: str, rounds: int) -> Figure:
    """Boot as `pyvmm run --host lab` does, in a host that is up: Python is started there."""
    values = {"kernel": "/run/bench/kernel", "initrd": "/run/bench/initrd", "cmdline": CMDLINE}
    command = [word.format_map({**values, "memory": MEMORY}) for word in shlex.split(PYVMM)]
    samples = []
    for lap in range(rounds + 1):
        began = time.monotonic()
        done = host.run(command, timeout=TIMEOUT)
        if done.status:
            raise HostError(f"pyvmm in the emulated host ended with {done.status}")
        if lap:
            samples.append(time.monotonic() - began)
    name = "pyvmm: the same, through pyvmm lab exec"
    return median(samples, group=group, name=name, unit="s")


def _run(host: Host, task: dict[str, Any]) -> dict[str, Any]:
    script = inside(Path(__file__).with_name("bench_inside.py"))
    done = host.run(["python3", script], stdin=json.dumps(task).encode(), timeout=TIMEOUT)
    if done.status:
        text = done.stderr.decode(errors="replace").strip()
        raise HostError(f"the benchmark in the emulated host failed: {text[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _add(report: Report, group: str, found: dict[str, Any]) -> None:
    laps = found["laps"]
    for vmm, rows in laps.items():
        for name, key in (
            ("exec to first KVM_RUN", "entry"),
            ("exec to guest userland", "userland"),
            ("exec to power-off and end", "ended"),
        ):
            if samples := [row[key] for row in rows if key in row]:
                report.add(median(samples, group=group, name=f"{vmm}: {name}", unit="s"))
        for name, start, end in (
            ("guest, from first KVM_RUN to power-off", "entry", "off"),
            ("from power-off to its end", "off", "ended"),
        ):
            if samples := [row[end] - row[start] for row in rows if start in row and end in row]:
                report.add(median(samples, group=group, name=f"{vmm}: {name}", unit="s"))
    for peer in laps.keys() - {"pyvmm"}:
        ratios = [
            ours["ended"] / theirs["ended"]
            for ours, theirs in zip(laps["pyvmm"], laps[peer], strict=True)
        ]
        target = 0.5 if peer == "QEMU" else None
        name = f"exec to end, pyvmm by {peer}"
        report.add(median(ratios, group=group, name=name, unit="x", at_most=target))
    imports = [whole - nothing for nothing, whole in found["imports"]]
    report.add(
        median(imports, group=group, name="pyvmm: imports, beyond Python's start", unit="s"),
        Figure(
            group=group,
            name="pyvmm: resident beyond guest RAM",
            value=found["resident"] / 1024,
            unit="MiB",
            at_most=40,
        ),
    )
    if exits := found["exits"]:
        most = sorted(exits, key=lambda address: -exits[address])[:4]
        note = ", ".join(f"{address}: {exits[address]}" for address in most)
        report.add(
            Figure(
                group=group,
                name="pyvmm: exits to userspace in a boot",
                value=sum(exits.values()),
                unit="",
                note=note,
            )
        )
