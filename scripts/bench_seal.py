"""What the seal costs: a machine with it and without, in turns, in the emulated host.

    power-on     a guest that powers off at once: exec to end, so the walls and filters themselves
    exits        loads of a device's register, answered in C: a KVM_RUN each
    requests     a disk served in pyvmm, by io_uring, and a network over passt's socket or a TAP

The seal's filters are looked at by each system call, so what makes many of them is compared.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import bench_virtio
from bench_report import Report, median

from vmm.errors import HostError
from vmm.lab import cache, command
from vmm.lab.guest import stock_guest
from vmm.lab.host import profiles
from vmm.lab.host.arm64_native import COMPILER
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.session import inside

if TYPE_CHECKING:
    import argparse

ROUNDS = 5
EXITS = 20_000
LEAST = 0.97
"""What the seal may cost: 3 %."""
TIMEOUT = 3600.0
SEALED, OPEN = "sealed", "not sealed"
FREE = "--sandbox off"

LOADS = f"""
    ldr x2, =0x09010000  // the RTC, whose seconds are answered in C
    ldr w3, ={EXITS}
again:
    ldr w1, [x2]
    subs w3, w3, #1
    b.ne again
"""
POWER_OFF = """
    ldr w0, =0x84000008  // PSCI SYSTEM_OFF
    hvc #0
    b .
"""


def flat(text: str) -> Path:
    """Return a guest of a few instructions, assembled, from the cache."""

    def build(temporary: Path) -> None:
        parts = temporary.with_suffix(".s"), temporary.with_suffix(".elf")
        parts[0].write_text(f".globl _start\n_start:\n{text}")
        options = ["-nostdlib", "-static", "-Wl,--build-id=none", "-o", str(parts[1])]
        command.run([COMPILER, *options, str(parts[0])])
        objcopy = COMPILER.replace("gcc", "objcopy")
        command.run([objcopy, "-O", "binary", str(parts[1]), str(temporary)])
        for each in parts:
            each.unlink()

    return cache.entry(cache.root() / "guests" / f"flat-{cache.digest(text)}", build)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Add figures of the seal to *report*."""
    _starts(report, options)
    words = shlex.split(bench_virtio.PYVMM)
    vmms = {SEALED: words, OPEN: [*words[:2], *shlex.split(FREE), *words[2:]]}
    bench_virtio.compare(report, options, vmms, [], ours=SEALED, targets={OPEN: LEAST})


def _starts(report: Report, options: argparse.Namespace) -> None:
    """Compare exec to end of guests that power off at once, that make exits, and Linux."""
    guests = {
        "power-off": [inside(flat(POWER_OFF))],
        "exits": [inside(flat(LOADS + POWER_OFF))],
        "Linux": [
            *("--initrd", inside(stock_guest.initramfs()), "--cmdline", bench_virtio.CMDLINE),
            inside(stock_guest.kernel("6.1")),
        ],
    }
    run = ["pyvmm", "run", "--host", "native", "--memory", "256M"]
    commands = {
        f"{seal}/{name}": [*run, *(shlex.split(FREE) if seal == OPEN else []), *words]
        for name, words in guests.items()
        for seal in (SEALED, OPEN)
    }
    script = inside(Path(__file__).with_name("bench_seal_inside.py"))
    task = {"commands": commands, "rounds": options.rounds or ROUNDS}
    with Host.start(profiles.profile(options.profile)) as host:
        done = host.run(["python3", script], stdin=json.dumps(task).encode(), timeout=TIMEOUT)
    if done.status:
        raise HostError(f"the benchmark failed: {done.stderr.decode(errors='replace')[-500:]}")
    add(report, f"the seal in the emulated host ({options.profile})", json.loads(done.stdout))


def add(report: Report, group: str, laps: dict[str, list[float]]) -> None:
    """Add what *laps* show: seconds of each run of each command."""

    def seconds(name: str) -> dict[str, list[float]]:
        return {seal: laps[f"{seal}/{name}"] for seal in (SEALED, OPEN)}

    power_off = seconds("power-off")
    rates = {
        seal: [EXITS / (one - none) for one, none in zip(each, power_off[seal], strict=True)]
        for seal, each in seconds("exits").items()
    }
    for name, rows, unit in (
        ("exec to end of a guest that powers off at once", power_off, "s"),
        ("exec to end of a Linux", seconds("Linux"), "s"),
        ("loads answered in C", rates, "1/s"),
    ):
        for seal, samples in rows.items():
            report.add(median(samples, group=group, name=f"{seal}: {name}", unit=unit))
        pairs = list(zip(rows[SEALED], rows[OPEN], strict=True))
        ratios = [a / b if unit == "1/s" else b / a for a, b in pairs]
        speed = f"{name}, speed sealed by not sealed"
        report.add(median(ratios, group=group, name=speed, unit="x", at_least=LEAST))
