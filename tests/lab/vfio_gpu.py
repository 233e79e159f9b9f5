"""Runs in a lab host: the emulated GPU's regions through VFIO, with nvgrace-gpu; print JSON.

Usage: vfio_gpu.py BACKEND
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vmm.errors import VmmError
from vmm.vfio.backend import Backend
from vmm.vfio.device import Device, open_device

PATTERN = bytes(range(256)) * 16
FAR = 0x123_4000


def look(device: Device) -> dict[str, Any]:
    """Return what each region is, and whether a mapping and VFIO's read and write agree."""
    found: dict[str, Any] = {}
    for region in device.regions:
        one: dict[str, Any] = {"size": region.size, "name": region.info.name}
        one["areas"] = [(area.offset, area.size) for area in region.info.areas]
        found[str(region.index)] = one
        if not region.info.mappable:
            continue
        with region.map() as mapping:
            one["aligned"] = mapping.host_address % mapping.size == 0
            offset = FAR if mapping.size > FAR else 0x1000
            before = region.read_bytes(offset, len(PATTERN))
            mapping.view[offset : offset + len(PATTERN)] = PATTERN
            one["written, then read"] = region.read_bytes(offset, len(PATTERN)) == PATTERN
            region.write_bytes(offset, PATTERN[::-1])
            seen = bytes(mapping.view[offset : offset + len(PATTERN)])
            one["read as written"] = seen == PATTERN[::-1]
            region.write_bytes(offset, before)
        with region.map(0x1000, 0x2000) as part:
            one["part"] = (part.offset, part.size)
    return found


def main() -> None:
    """Print it."""
    (path,) = Path("/sys/bus/pci/drivers/nvgrace_gpu_vfio_pci").glob("0000:*")
    with open_device(path.name, backend=Backend(sys.argv[1])) as device:
        device.enable_memory()
        found = {"driver": device.driver, "memory": device.memory_enabled, "regions": look(device)}
        try:
            device.region(4).map(512 << 20, 4096)
        except VmmError as error:
            found["past"] = str(error)
    json.dump(found, sys.stdout)


main()
