"""Snapshots, restores, clones and live migration in the emulated host.

    snapshot     bytes of memory that are not zero, by second; beside dd of as many bytes there
    restore      exec to the first instruction, of a machine of 256 MiB and of 4 GiB
    clones       memory of three guests of one snapshot: each one's share (PSS)
    migration    a guest that writes its memory goes to another process, by pyvmm and by QEMU

Downtimes differ in what they are: pyvmm's ends when the destination says that the guest runs.
QEMU's is its own, from query-migrate.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_lab import qemu
from bench_report import Report, median

from vmm.errors import HostError
from vmm.lab.guest import fixture
from vmm.lab.host import profiles
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

if TYPE_CHECKING:
    import argparse

ROUNDS = 3
DATA = 96 << 20
"""Bytes of the guest's memory that are not zero, besides Linux's."""
CLONES = 3
DOWNTIME = 300
"""Milliseconds that a move may stop the guest for."""
TIMEOUT = 3600.0
MOST_BY_SIZE = 2.0
"""What a restore of 4 GiB may take, by that of 256 MiB."""

SCRIPT = f"""
head -c {DATA} /dev/urandom >/tmp/data
echo ready
while :; do
    dd if=/dev/urandom of=/tmp/more bs=64k count=16 conv=notrunc 2>/dev/null
    echo tick
    sleep 0.2
done
"""
CMDLINE = "console=ttyAMA0 quiet panic=-1"

PYVMM = "pyvmm run --host native --memory {memory}M --initrd {initrd} --cmdline {cmdline} {kernel}"
QEMU = (
    "/run/bench/qemu/start -accel kvm -cpu host -M virt,gic-version=host -display none -nic none "
    "-monitor none -serial stdio -m {memory} -kernel {kernel} -initrd {initrd} -append {cmdline}"
)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures of a machine's state to *report*."""
    guest = fixture.guest(script=SCRIPT)
    compared = "qemu" in (options.peer or ["qemu"])
    task = {
        "files": {"kernel": inside(guest.kernel), "initrd": inside(guest.initrd)},
        "cmdline": CMDLINE,
        "rounds": options.rounds or ROUNDS,
        "pyvmm": shlex.split(PYVMM),
        "qemu": shlex.split(QEMU) if compared else [],
        "install": inside(qemu() / "install") if compared else "",
        "clones": CLONES,
        "downtime": DOWNTIME,
    }
    profile = profiles.profile(options.profile)
    script = inside(Path(__file__).with_name("bench_state_inside.py"))
    with Host.start(replace(profile, memory=6 << 30)) as host:
        done = host.run(["python3", script], stdin=json.dumps(task).encode(), timeout=TIMEOUT)
    if done.status:
        text = done.stderr.decode(errors="replace").strip()
        raise HostError(f"the benchmark in the emulated host failed: {text[-500:]}")
    add(report, f"state in the emulated host ({options.profile})", json.loads(done.stdout))


def add(report: Report, group: str, found: dict[str, Any]) -> None:
    """Add figures of what was *found*: samples by name."""

    def one(name: str, samples: list[float], unit: str, **more: Any) -> None:
        report.add(median(samples, group=group, name=name, unit=unit, **more))

    rates, copies = found["snapshot"], found["dd"]
    one("snapshot", rates, "MB/s")
    one("dd of as many bytes", copies, "MB/s")
    one("snapshot by dd", [a / b for a, b in zip(rates, copies, strict=True)], "x")
    small, large = found["restore"]["256"], found["restore"]["4096"]
    one("exec to first instruction, restored, 256 MiB", small, "s")
    one("exec to first instruction, restored, 4 GiB", large, "s")
    ratios = [a / b for a, b in zip(large, small, strict=True)]
    one("restore of 4 GiB by 256 MiB", ratios, "x", at_most=MOST_BY_SIZE)
    one(f"resident, each of {CLONES} clones", found["rss"], "MiB")
    one(f"its share (PSS), each of {CLONES} clones", found["pss"], "MiB")
    for vmm, laps in found["migration"].items():
        one(f"{vmm}: migration, the guest stood still", [lap["downtime"] for lap in laps], "s")
        one(f"{vmm}: migration, in all", [lap["total"] for lap in laps], "s")
    if len(found["migration"]) == 2:
        ours, theirs = found["migration"].values()
        pairs = [a["downtime"] / b["downtime"] for a, b in zip(ours, theirs, strict=True)]
        one("downtime by QEMU's", pairs, "x", at_most=1.0)
