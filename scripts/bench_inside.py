"""The part of the benchmark that runs in the emulated host. Needs nothing but Python.

Reads what to do from stdin, as JSON, and writes what came of it to stdout:

    {"files": {"kernel": ..., "initrd": ...}, "cmdline": ..., "memory": MiB, "rounds": N,
     "programs": [directory, ...], "vmms": {"pyvmm": ["pyvmm", "run", ..., "{kernel}"], ...}}

    {"laps": {"pyvmm": [{"entry": s, "userland": s, "off": s, "ended": s}, ...], ...},
     "resident": KiB, "exits": {...}, "imports": [[s, s], ...]}

All VMMs get their files from memory (tmpfs), and run in turns. What they do is seen from
outside, by KVM's tracepoints, so that any VMM can be looked at:

    exec --- entry: the first KVM_RUN --- userland: the guest's banner --- off --- ended
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path("/run/bench")
TRACING = Path("/sys/kernel/tracing")
BANNER = b"pyvmm guest:"
PATIENCE = 180.0
"""Seconds that a guest may take."""
HUGE_PAGE = 2 << 20
TOUCHED = 2 << 30
SYSTEM_EVENT = 24
"""KVM_EXIT_SYSTEM_EVENT, as the guest powers off."""
RAM = 0x4000_0000
DEVICES = 0x0900_0000
"""Below are the parts of the GIC, which KVM emulates by itself."""


def main() -> None:
    """Do what stdin asks for."""
    task = json.load(sys.stdin)
    HERE.mkdir(exist_ok=True)
    values = {"cmdline": task["cmdline"], "memory": str(task["memory"])}
    for name, path in task["files"].items():
        values[name] = str(shutil.copyfile(path, HERE / name))
    for directory in task["programs"]:
        subprocess.run([f"{directory}/install", HERE], check=True)
    vmms = {
        name: [word.format_map(values) for word in command]
        for name, command in task["vmms"].items()
    }
    touch()
    trace = Trace()
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in vmms}
    for turn in range(task["rounds"] + 1):
        for name, command in vmms.items():
            lap = boot(command, trace)
            if turn:  # the first only warms up
                laps[name].append(lap)
    ours = vmms["pyvmm"]
    json.dump(
        {
            "laps": laps,
            "exits": trace.exits(lambda: boot(ours, None)),
            "resident": resident([word.replace("poweroff", "idle") for word in ours]),
            "imports": imports(task["rounds"] + 1),
        },
        sys.stdout,
    )


def touch() -> None:
    """Write to much of this host's memory: what was never used is slow the first time.

    The emulator, too, gets its memory page by page.
    """
    zeroes = bytes(HUGE_PAGE)
    with mmap.mmap(-1, TOUCHED) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, TOUCHED, HUGE_PAGE):
            memory[at : at + HUGE_PAGE] = zeroes


class Trace:
    """KVM's tracepoints, on this host's monotonic clock."""

    def __init__(self) -> None:
        if not (TRACING / "trace").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=False)
        self.there = (TRACING / "events/kvm/kvm_entry").exists()
        if self.there:
            self._write("trace_clock", "mono")
            # A kernel has its MMU off at first: of all entries, trace those to such addresses.
            addresses = f"vcpu_pc >= {RAM:#x} && vcpu_pc < {2 * RAM:#x}"
            self._write("events/kvm/kvm_entry/filter", addresses)
            self._write("events/kvm/kvm_userspace_exit/filter", f"reason == {SYSTEM_EVENT}")

    def _write(self, name: str, text: str) -> None:
        (TRACING / name).write_text(text)

    def arm(self) -> None:
        """Await the first entry to a guest, and its powering off."""
        if not self.there:
            return
        self._write("trace", "")
        self._write("events/kvm/kvm_entry/enable", "1")
        self._write("events/kvm/kvm_userspace_exit/enable", "1")

    def seen(self) -> dict[str, float]:
        """Return when that was, in seconds of the monotonic clock."""
        if not self.there:
            return {}
        text = (TRACING / "trace").read_text()
        self._write("events/kvm/kvm_entry/enable", "0")
        self._write("events/kvm/kvm_userspace_exit/enable", "0")
        names = {"kvm_entry": "entry", "kvm_userspace_exit": "off"}
        found = re.findall(r" (\d+\.\d+): (kvm_entry|kvm_userspace_exit):", text)
        return {names[event]: float(when) for when, event in reversed(found)}

    def exits(self, run: Any) -> dict[str, int]:
        """Count the exits to userspace in one *run*, by address; "all": those to KVM, too."""
        if not self.there:
            return {}
        histogram = f"hist:keys=gpa.hex if type != 1 && gpa >= {DEVICES:#x}"
        try:
            self._write("events/kvm/kvm_mmio/trigger", histogram)
        except OSError:  # a kernel without histograms
            return {}
        run()
        text = (TRACING / "events/kvm/kvm_mmio/hist").read_text()
        self._write("events/kvm/kvm_mmio/trigger", f"!{histogram}")
        found = re.findall(r"gpa: *([0-9a-f]+) .*hitcount: *(\d+)", text)
        return {f"{int(address, 16):#010x}": int(count) for address, count in found}


def boot(command: list[str], trace: Trace | None) -> dict[str, float]:
    """Run *command* to its end; return when it got where, in seconds from its start."""
    if trace:
        trace.arm()
    began = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        said, userland = _await_banner(process)
        assert process.stderr
        complaint = process.stderr.read()
        process.wait(PATIENCE)
        ended = time.monotonic()
    if not userland or process.returncode:
        tail = (said + complaint).decode(errors="replace").strip()[-300:]
        sys.exit(f"{command[0]} ended with {process.returncode}: {tail}")
    seen = {"userland": userland, "ended": ended, **(trace.seen() if trace else {})}
    return {name: when - began for name, when in seen.items()}


def _await_banner(process: subprocess.Popen[bytes], *, stop: bool = False) -> tuple[bytes, float]:
    """Read until the end of output, or with *stop* until the banner; return when that came."""
    assert process.stdout
    said, userland = b"", 0.0
    while data := os.read(process.stdout.fileno(), 4096):
        said += data
        if not userland and BANNER in said:
            userland = time.monotonic()
            if stop:
                break
    return said, userland


def resident(command: list[str]) -> int:
    """Return the KiB resident in a VMM whose guest idles, guest RAM not counted."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        _await_banner(process, stop=True)
        time.sleep(1)
        smaps = Path(f"/proc/{process.pid}/smaps").read_text()
        process.send_signal(signal.SIGTERM)
    sizes = re.findall(r"^Size: +(\d+) kB$.*?^Rss: +(\d+) kB$", smaps, re.MULTILINE | re.DOTALL)
    ram = max(int(size) for size, _ in sizes)
    return sum(int(rss) for size, rss in sizes if int(size) < ram)


def imports(rounds: int) -> list[list[float]]:
    """Return seconds that Python takes to start, and then to import what pyvmm run needs."""
    commands = (
        ["python3", "-c", "pass"],
        ["pyvmm", "run", "--host", "native", "/no/such/image"],
    )
    laps = []
    for _ in range(rounds):
        lap = []
        for command in commands:
            began = time.monotonic()
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
            lap.append(time.monotonic() - began)
        laps.append(lap)
    return laps


if __name__ == "__main__":
    main()
