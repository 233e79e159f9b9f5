"""Make the emulated GPU ready and bind it to nvgrace-gpu: see vmm.lab.host.gh200.

Uses only Python's standard library: the host runs this file's text before it has vmm.
"""

import mmap
import os
import sys
from pathlib import Path

ID = ("0x1234", "0x1111")
"""PCI vendor and device of QEMU's bochs-display."""

DRIVER = "nvgrace_gpu_vfio_pci"

READY = b"\xff\0\0\0"
READY_AT = (0x1498, 0x200BC)
"""Offsets in BAR 0 of two registers that nvgrace-gpu polls: C2C link up, HBM trained
(drivers/vfio/pci/nvgrace-gpu/main.c). The display's BAR 0 is memory, and keeps what is written."""


def find(devices: Path) -> Path:
    """Return the GPU's directory in sysfs. Raises LookupError."""
    for device in sorted(devices.iterdir()):
        if tuple((device / name).read_text().strip() for name in ("vendor", "device")) == ID:
            return device
    raise LookupError("this host has no emulated GPU")


def make_ready(device: Path) -> None:
    """Write to BAR 0 what firmware would: link up, memory trained."""
    (device / "enable").write_text("1")
    fd = os.open(device / "resource0", os.O_RDWR | os.O_SYNC)
    try:
        with mmap.mmap(fd, max(READY_AT) + mmap.PAGESIZE & -mmap.PAGESIZE) as bar:
            for offset in READY_AT:
                bar[offset : offset + 4] = READY
    finally:
        os.close(fd)
        (device / "enable").write_text("0")


def bind(device: Path, driver: Path) -> None:
    """Bind the GPU to *driver*, a directory in sysfs. Raises LookupError."""
    if not driver.exists():
        raise LookupError(f"this host's kernel has no {driver.name}")
    (device / "driver_override").write_text(driver.name)
    (driver / "bind").write_text(device.name)


def main(pci: Path = Path("/sys/bus/pci")) -> None:
    """Make the GPU ready and bind it, unless it has a driver already."""
    device = find(pci / "devices")
    if not (device / "driver").exists():
        make_ready(device)
        bind(device, pci / "drivers" / DRIVER)


if __name__ == "__main__":
    try:
        main()
    except (OSError, LookupError) as error:
        sys.exit(f"the GPU can't be set up: {error}")
