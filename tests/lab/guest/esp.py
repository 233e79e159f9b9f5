"""A disk that UEFI boots from: a GPT with one partition, FAT16, and in it /EFI/BOOT/BOOTAA64.EFI.

    0 protective MBR | 1 GPT | 2-33 its entries | 2048 - ... FAT16 | entries | GPT, again

Sources: UEFI 2.10, 5.2 and 5.3 (MBR, GPT), 13.3 (ESP); Microsoft's FAT specification, 1.03.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path

SECTOR = 512
CLUSTER = 8 * SECTOR
FIRST = 2048
"""Where the partition begins, in sectors: at 1 MiB."""
ENTRIES = 32
"""Sectors of partition entries."""
RESERVED, ROOT_ENTRIES = 8, 512

ESP = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
DIRECTORY, ARCHIVE = 0x10, 0x20
LAST = 0xFFFF


def entry(name: str, attributes: int, cluster: int, size: int = 0) -> bytes:
    """Return a directory entry: a name of 8 + 3 characters, no times."""
    return struct.pack("<11sB14xHI", name.encode(), attributes, cluster, size)


def fat16(program: bytes) -> bytes:
    """Return a FAT16 file system with *program* at /EFI/BOOT/BOOTAA64.EFI."""
    # Clusters 2 and 3 are the directories, the program follows; at least what makes it a FAT16.
    used = -(-len(program) // CLUSTER)
    clusters = max(used + 2, 4096)
    fat_sectors = -(-(clusters + 2) * 2 // SECTOR)
    chain = [*range(5, 4 + used), LAST]
    fat = struct.pack(f"<{4 + used}H", 0xFFF8, LAST, LAST, LAST, *chain)
    total = RESERVED + fat_sectors + ROOT_ENTRIES * 32 // SECTOR + clusters * CLUSTER // SECTOR
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        b"\xeb\x3c\x90", b"PYVMM   ", SECTOR, CLUSTER // SECTOR, RESERVED, 1, ROOT_ENTRIES,
        0, 0xF8, fat_sectors, 32, 64, FIRST, total, 0x80, 0, 0x29, 0x50594D4D,
        b"ESP        ", b"FAT16   ",
    )  # fmt: skip
    efi = entry(".          ", DIRECTORY, 2) + entry("..         ", DIRECTORY, 0)
    efi += entry("BOOT       ", DIRECTORY, 3)
    folder = entry(".          ", DIRECTORY, 3) + entry("..         ", DIRECTORY, 2)
    folder += entry("BOOTAA64EFI", ARCHIVE, 4, len(program))
    return b"".join(
        (
            (boot.ljust(510, b"\0") + b"\x55\xaa").ljust(RESERVED * SECTOR, b"\0"),
            fat.ljust(fat_sectors * SECTOR, b"\0"),
            entry("EFI        ", DIRECTORY, 2).ljust(ROOT_ENTRIES * 32, b"\0"),
            efi.ljust(CLUSTER, b"\0"),
            folder.ljust(CLUSTER, b"\0"),
            program.ljust((clusters - 2) * CLUSTER, b"\0"),
        )
    )


def disk(program: bytes) -> bytes:
    """Return a disk with *program* as UEFI's default boot file."""
    volume = fat16(program)
    last = FIRST + len(volume) // SECTOR - 1
    end = last + ENTRIES + 1  # the last sector of all
    entries = struct.pack(
        "<16s16sQQQ72s", ESP.bytes_le, uuid.uuid4().bytes_le, FIRST, last, 0,
        "ESP".encode("utf-16-le"),
    )  # fmt: skip
    entries = entries.ljust(ENTRIES * SECTOR, b"\0")
    name = uuid.uuid4().bytes_le

    def header(here: int, other: int, table: int) -> bytes:
        def packed(checksum: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x1_0000, 92, checksum, 0, here, other,
                ENTRIES + 2, last, name, table, ENTRIES * SECTOR // 128, 128, zlib.crc32(entries),
            )  # fmt: skip

        return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")

    protective = struct.pack("<446xB3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, end)
    return b"".join(
        (
            protective.ljust(510, b"\0") + b"\x55\xaa",
            header(1, end, 2),
            entries.ljust((FIRST - 2) * SECTOR, b"\0"),
            volume,
            entries,
            header(end, 1, last + 1),
        )
    )


def write(path: Path, program: Path) -> None:
    """Write a disk that boots *program* to *path*."""
    path.write_bytes(disk(program.read_bytes()))
