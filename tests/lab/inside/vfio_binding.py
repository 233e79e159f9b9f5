"""Run in a lab host: bind a disk to VFIO and back, repeatedly; print JSON.

Usage: vfio_binding.py BDF BACKEND, of a device that a driver of the host has.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from vmm.errors import VmmError
from vmm.vfio import binding
from vmm.vfio.backend import Backend
from vmm.vfio.device import open_device
from vmm.vfio.function import HostFunction
from vmm.vfio.irq import IrqIndex

ROUNDS = 20


def state(function: HostFunction) -> list[object]:
    """Return the state that binding changes."""
    return [function.driver, function.driver_override, binding.bound()]


def left() -> list[int]:
    """Return how many files, mappings and locked bytes this process has."""
    locked = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmLck" in line
    ]
    maps = Path("/proc/self/maps").read_text()
    return [
        len(list(Path("/proc/self/fd").iterdir())),
        maps.count("vfio"),
        int(locked[0].split()[1]),
    ]


def use(bdf: str, backend: Backend) -> dict[str, Any]:
    """Open the device and read an NVMe controller's registers."""
    with open_device(bdf, backend=backend) as device:
        device.enable_memory()
        bar = device.region(0)
        with bar.map() as mapping:
            version = int.from_bytes(mapping.view[8:12], "little")
        events = [os.eventfd(0) for _ in range(4)]
        device.irqs.signal(IrqIndex.MSIX, events)
        device.irqs.trigger(IrqIndex.MSIX, 2)
        signalled = os.eventfd_read(events[2])
        device.irqs.disable(IrqIndex.MSIX)
        for event in events:
            os.close(event)
        if device.resettable:
            device.reset()
        return {
            "version": version,
            "read": bar.read(8, 4),
            "msix": device.irq(IrqIndex.MSIX).count,
            "table can be mapped": bar.info.msix,
            "signalled": signalled,
            "resettable": device.resettable,
            "memory after reset": device.memory_enabled,
        }


def refusal(command: str, *arguments: str) -> str:
    done = subprocess.run(
        ["pyvmm", "vfio", command, *arguments], capture_output=True, text=True, check=False
    )
    return f"{done.returncode} {done.stderr.strip() or done.stdout.strip()}"


def main() -> None:
    """Print the state before, between and after."""
    bdf, backend = sys.argv[1], Backend(sys.argv[2])
    function = HostFunction.find(bdf)
    found: dict[str, Any] = {"before": state(function)}
    try:
        open_device(bdf)
    except VmmError as error:
        found["not bound"] = str(error)
    first: list[int] = []
    for round_ in range(ROUNDS):
        found["driver"] = binding.bind(bdf)
        found["bound"] = state(function)
        found["used"] = use(bdf, backend)
        found["given back"] = binding.unbind(bdf)
        found["after"] = state(function)
        if round_ == 0:
            first = left()
    found["leaked"] = [now - then for now, then in zip(left(), first, strict=True)]
    found["peak KiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["unbind again"] = refusal("unbind", bdf)
    found["not VFIO's"] = refusal("bind", bdf, "--driver", "nvme")
    found["no such driver"] = refusal("bind", bdf, "--driver", "vfio_none")
    found["malformed"] = refusal("bind", "disk")
    found["missing"] = refusal("bind", "ff:1f.7")
    found["bound by hand"] = refusal("bind", bdf)
    with open_device(bdf, backend=backend):
        found["unbind in use"] = refusal("unbind", bdf)
    found["listed"] = json.loads(
        subprocess.run(["pyvmm", "vfio", "list", "--json"], capture_output=True, check=True).stdout
    )
    found["unbound by hand"] = refusal("unbind", bdf)
    found["at last"] = state(function)
    json.dump(found, sys.stdout)


main()
