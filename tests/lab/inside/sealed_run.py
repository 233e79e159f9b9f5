"""Run in a lab host: boot a guest that never ends, and print what its process has given up.

    sealed_run.py COMMAND...

COMMAND is a whole ``pyvmm run`` with a daemon. Prints JSON: the state of pyvmm's threads and of its
children, and whether guest RAM would be in a core dump. Ends what it started.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 120.0
SIZE = 64 << 10
"""KiB of guest RAM: the mapping that is looked for."""


def fields(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)


def threads(pid: int) -> list[dict[str, str]]:
    return [fields(task / "status") for task in Path(f"/proc/{pid}/task").iterdir()]


def children(pid: int) -> list[int]:
    """Return the children of a process, and theirs: the broker's are daemons."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return found + [below for child in found for below in children(child)]


KEPT = ("Name", "Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")


def child(pid: int) -> dict[str, object]:
    """Return what a daemon is and has; "own": the namespaces that are not this program's."""
    status = fields(Path(f"/proc/{pid}/status"))
    spaces = {each.name: each.readlink() for each in Path(f"/proc/{pid}/ns").iterdir()}
    own = [name for name, it in spaces.items() if it != Path(f"/proc/self/ns/{name}").readlink()]
    return {
        **{name: status[name].strip() for name in KEPT},
        "pid": pid,
        "own": own,
        "cgroup": Path(f"/proc/{pid}/cgroup").read_text().strip(),
        "root": sorted(each.name for each in Path(f"/proc/{pid}/root").iterdir()),
    }


def has_vcpu(pid: int) -> bool:
    links = (fd.readlink().name for fd in Path(f"/proc/{pid}/fd").iterdir())
    with suppress(FileNotFoundError):  # closed meanwhile
        return any("kvm-vcpu" in link for link in links)
    return False


def ram(pid: int) -> list[list[str]]:
    """Return the VmFlags of the mappings that are as large as guest RAM."""
    found, size = [], 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("VmFlags:") and size >= SIZE:
            found.append(line.split()[1:])
    return found


def main() -> None:
    """Print what is found."""
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL) as run:
        try:
            deadline = time.monotonic() + PATIENCE
            while not has_vcpu(run.pid) or len(threads(run.pid)) < 3:
                assert run.poll() is None and time.monotonic() < deadline  # noqa: PT018
                time.sleep(0.1)
            found = {
                "threads": [one["NoNewPrivs"].strip() for one in threads(run.pid)],
                "children": [child(pid) for pid in children(run.pid)],
                "core": [
                    line.split()[4]
                    for line in Path(f"/proc/{run.pid}/limits").read_text().splitlines()
                    if line.startswith("Max core")
                ],
                "ram": ram(run.pid),
            }
        finally:
            run.terminate()
    json.dump(found, sys.stdout)


main()
