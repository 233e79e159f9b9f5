"""Run in a lab host: make a block device whose second half fails, with device mapper.

    python3 failing_disk.py make FILE SECTORS GOOD   prints the device's path
    python3 failing_disk.py remove

The first GOOD sectors are FILE's, through a loop device; all others are errors. There is no
dmsetup in the lab: this is what it does, by <linux/dm-ioctl.h>.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

NAME = "pyvmm-failing"
CONTROL = Path("/dev/mapper/control")
LOOP = "/dev/loop7"
HEADER = struct.Struct("<3IIIIiIIIQ128s129s7x")
"""struct dm_ioctl: version, size of all, start of data, targets, open, flags, event, pad, device"""
TARGET = struct.Struct("<QQiI16s")
"""struct dm_target_spec: first sector, sectors, status, offset of the next, type"""
DEV_CREATE, DEV_REMOVE, DEV_SUSPEND, TABLE_LOAD = 3, 4, 6, 9
READ_WRITE = 3
SIZE = 4096


def ask(number: int, targets: list[bytes] | None = None) -> int:
    """Issue one of device mapper's ioctls; return the device number that comes back."""
    data = b"".join(targets or [])
    header = HEADER.pack(
        *(4, 0, 0), SIZE, HEADER.size, len(targets or []), 0, 0, 0, 0, 0, NAME.encode(), b""
    )
    buffer = bytearray((header + data).ljust(SIZE, b"\0"))
    request = READ_WRITE << 30 | HEADER.size << 16 | 0xFD << 8 | number
    fd = os.open(CONTROL, os.O_RDWR)
    try:
        # Not through fcntl.ioctl's own buffer, which is no larger than 1024 bytes.
        fcntl.ioctl(fd, request, buffer, True)  # noqa: FBT003
    finally:
        os.close(fd)
    return int(HEADER.unpack_from(buffer)[10])


def target(first: int, count: int, kind: str, arguments: str = "") -> bytes:
    """Return one line of a table."""
    text = arguments.encode() + b"\0"
    text += bytes(-(TARGET.size + len(text)) % 8)
    return TARGET.pack(first, count, 0, TARGET.size + len(text), kind.encode()) + text


def make(file: str, sectors: int, good: int) -> str:
    """Make the device; return its path."""
    subprocess.run(["modprobe", "-a", "loop", "dm_mod"], check=True)
    subprocess.run(["losetup", LOOP, file], check=True)
    device = ask(DEV_CREATE)
    ask(
        TABLE_LOAD,
        [target(0, good, "linear", f"{LOOP} 0"), target(good, sectors - good, "error")],
    )
    ask(DEV_SUSPEND)  # without the flag to suspend, this resumes: the table comes into force
    path = f"/dev/{NAME}"
    # dm's numbers are in the new encoding: 12 bits of major number from bit 8 on.
    os.mknod(path, 0o600 | 0o060000, os.makedev(device >> 8 & 0xFFF, device & 0xFF))
    return path


def remove() -> None:
    """Remove the device and the loop device under it."""
    ask(DEV_REMOVE)
    Path(f"/dev/{NAME}").unlink(missing_ok=True)
    subprocess.run(["losetup", "-d", LOOP], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        print(make(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))  # noqa: T201
    else:
        remove()
