"""Targets: files and blobs that pyvmm reads, each format with samples of its own."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.arm64.kernel_files import (
    COMPRESSIONS,
    LOOP,
    NOP,
    arm64_image,
    efi_program,
    elf,
    uki,
    zboot,
)
from tests.fuzz.target import Target
from vmm import fdt
from vmm.arm64 import compression, image
from vmm.config.disk import parse_disk
from vmm.errors import UserError
from vmm.virtio.block import image_format

LIMIT = 1 << 24
"""Bytes of the guest's RAM."""
SMALL = NOP * 40 + LOOP
TREE = fdt.Node(
    "",
    {"compatible": b"linux,dummy\0", "#address-cells": fdt.u32(2)},
    [fdt.Node("memory@40000000", {"reg": fdt.reg((0x4000_0000, 1 << 30))}, [])],
)


def one_clear_line(error: UserError, name: str = "guest.img") -> None:
    """Check that *error* names the file, in one line, and what to do."""
    assert f"{name}: " in str(error)
    assert str(error).isprintable()
    assert error.hint


def kernel(data: bytes) -> None:
    """Find the kernel in *data*."""
    try:
        found = image.identify(memoryview(data), "guest.img", LIMIT)
    except UserError as error:
        one_clear_line(error)
        return
    assert found.kind in ("Image", "flat")
    assert 0 < len(found.payload) <= max(LIMIT, len(data))
    assert found.image_size >= len(found.payload)
    assert 0 <= found.text_offset < 1 << 64
    assert found.cmdline is None or "\0" not in found.cmdline


def packed(data: bytes) -> None:
    """Unpack *data*, and compare with Python's own decoders, where these like it, too."""
    kind = compression.sniff(data)
    if kind is None:
        return
    try:
        found = bytes(compression.decompress(kind, memoryview(data), LIMIT, "guest.img"))
    except UserError as error:
        one_clear_line(error)
        return
    assert len(found) <= LIMIT
    try:
        if kind == "gzip":
            assert found.startswith(zlib.decompressobj(wbits=31).decompress(data))
        elif kind == "xz":
            assert found.startswith(lzma.LZMADecompressor().decompress(data))
    except lzma.LZMAError as error:
        raise AssertionError("damaged, and unpacked") from error


def disk(data: bytes) -> None:
    """Find out a disk's format: never one that may name other files."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "disk.img")
        path.write_bytes(data)
        before = path.stat()
        try:
            found = image_format.image_format(parse_disk(str(path)))
        except UserError as error:
            one_clear_line(error, str(path))
            return
        assert found == "raw" or (found == "qcow2" and data[:4] == b"QFI\xfb")
        if found == "qcow2" and len(data) >= 16:
            assert data[8:16] == bytes(8), "a backing file"
        assert path.stat().st_mtime_ns == before.st_mtime_ns


def tree(data: bytes) -> None:
    """Read a device tree: what is read can be written, and is the same then."""
    try:
        found = fdt.loads(data)
    except ValueError:
        return
    try:
        again = fdt.dumps(found)
    except ValueError:
        return  # a name that the specification forbids
    assert fdt.loads(again) == found


@cache
def of_images() -> Sequence[bytes]:
    return [arm64_image(body=SMALL), arm64_image(body=SMALL, efi=True), SMALL, SMALL + bytes(99)]


@cache
def of_packed() -> Sequence[bytes]:
    small = arm64_image(body=SMALL)
    packers: list[Callable[[bytes], bytes]] = [
        lambda data: gzip.compress(data, mtime=0),
        lzma.compress,
        COMPRESSIONS["zstd"],
    ]
    made = [pack(small) for pack in packers]
    return [*made, *(2 * each for each in made), made[0][:-8] + made[0], made[1] + bytes(8)]


@cache
def of_zboot() -> Sequence[bytes]:
    return [zboot(pack(arm64_image(body=SMALL)), kind) for kind, pack in COMPRESSIONS.items()]


@cache
def of_uki() -> Sequence[bytes]:
    small = arm64_image(body=SMALL)
    return [
        uki(small, initrd=b"070701" * 9, cmdline=b"quiet\n"),
        uki(zboot(gzip.compress(small, mtime=0), "gzip"), cmdline=b"a\0b"),
        efi_program([(".text", SMALL)]),
        efi_program([(".linux", small)], machine=0x8664),
    ]


@cache
def of_elf() -> Sequence[bytes]:
    small = arm64_image(body=SMALL)
    return [elf([(0, small)]), elf([(0x4000_0000, small), (0x4001_0000, b"data")]), elf([])]


@cache
def of_disks() -> Sequence[bytes]:
    plain = struct.pack(">4sIQ", b"QFI\xfb", 3, 0).ljust(104, b"\0")
    backed = struct.pack(">4sIQ", b"QFI\xfb", 2, 104).ljust(104, b"\0")
    others = [magic.ljust(512, b"\0") for magic in image_format.MAGIC]
    return [plain, backed, *others, bytes(512)]


@cache
def of_trees() -> Sequence[bytes]:
    return [fdt.dumps(TREE), fdt.dumps(fdt.Node("", {}, []))]


@cache
def of_kernels() -> Sequence[bytes]:
    return [*of_images(), *of_packed()[:3], of_zboot()[0], *of_uki()[:2], of_elf()[1]]


PE = "sections, sizes and offsets of a PE; read, or refused in a line"
TARGETS = (
    Target("kernel", "any file as IMAGE; read, or refused in a line", kernel, of_kernels),
    Target("image", "the arm64 Image's header, and code without one", kernel, of_images),
    Target("packed", "gzip, xz and zstd; what comes out is what others unpack", packed, of_packed),
    Target("zboot", f"EFI zboot: {PE}", kernel, of_zboot),
    Target("uki", f"UKI: {PE}", kernel, of_uki),
    Target("elf", "ELF's headers and segments; no more than RAM is laid out", kernel, of_elf),
    Target("disk-format", "a disk's first bytes; none that names files is guessed", disk, of_disks),
    Target("device-tree", "a blob; what is read comes back after a write", tree, of_trees),
)
