"""The part of the virtio benchmark that runs in the emulated host. Needs nothing but Python.

Reads what to do from stdin, as JSON, and writes what came of it to stdout:

    {"files": {"kernel": ..., "initrd": ...}, "values": {"cmdline": ..., "memory": ...},
     "disk": bytes, "address": ..., "server": [...], "rounds": N, "programs": [directory, ...],
     "vmms": {"pyvmm": ["pyvmm", "run", ..., "{kernel}"], ...}}

    {"pyvmm": [what the first round's guest said, ...], ...}

All VMMs get their files, and the disk, from memory (tmpfs), and run in turns. A TAP interface is
there for them, with the address, and a server that guests can talk to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Python in a lab host has PYTHONSAFEPATH=1: it looks for no module beside a program.
sys.path.insert(1, str(Path(__file__).parent))

from bench_inside import HERE, PATIENCE, touch

TAP = "bench0"


def main() -> None:
    """Do what stdin asks for."""
    task = json.load(sys.stdin)
    HERE.mkdir(exist_ok=True)
    values = dict(task["values"])
    for name, path in task["files"].items():
        values[name] = str(shutil.copyfile(path, HERE / name))
    values["disk"] = str(image(HERE / "disk", task["disk"]))
    for directory in task["programs"]:
        subprocess.run([f"{directory}/install", HERE], check=True)
    touch()
    values["tap"] = TAP
    interface(task["address"])
    said: dict[str, list[str]] = {name: [] for name in task["vmms"]}
    with subprocess.Popen(task["server"]) as server:
        try:
            for turn in range(task["rounds"] + 1):
                for name, command in task["vmms"].items():
                    text = run([word.format_map(values) for word in command])
                    if turn:  # the first only warms up
                        said[name].append(text)
        finally:
            server.kill()
            subprocess.run(["ip", "link", "delete", TAP], check=True)
    json.dump(said, sys.stdout)


def interface(address: str) -> None:
    """Make the interface that guests are at."""
    for command in (
        f"ip tuntap add {TAP} mode tap vnet_hdr",
        f"ip address add {address} dev {TAP}",
        f"ip link set {TAP} up",
    ):
        subprocess.run(command.split(), check=True)
    Path("/sys/module/tcp_cubic/parameters/hystart").write_text("0")  # as in the guest


def image(path: Path, size: int) -> Path:
    """Make a disk of that many bytes, all of them there."""
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    return path


def run(command: list[str]) -> str:
    """Run *command* to its end; return what it said."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        text=True,
        errors="replace",
    )
    if done.returncode:
        tail = (done.stdout + done.stderr).strip()[-300:]
        sys.exit(f"{command[0]} ended with {done.returncode}: {tail}")
    return done.stdout


if __name__ == "__main__":
    main()
