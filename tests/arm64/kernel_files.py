"""Make small files of every kind that `vmm.arm64.image` knows."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

NOP = struct.pack("<I", 0xD503_201F)
LOOP = struct.pack("<I", 0x1400_0000)
BODY = NOP * 1000 + LOOP
LITTLE_ENDIAN_4K = 0b1010


def arm64_image(
    *,
    body: bytes = BODY,
    text_offset: int = 0,
    image_size: int = 1 << 20,
    flags: int = LITTLE_ENDIAN_4K,
    efi: bool = False,
) -> bytes:
    """Return an Image; with *efi* one whose header is a PE file's, too."""
    pe = pe_header([(".text", 64 + 24 + 40, body)], at=64) if efi else b""
    code0 = b"MZ\x40\xfa" if efi else NOP
    code1 = 0x1400_0000 | (60 + len(pe)) // 4  # from offset 4, a branch over what is no code
    header = code0 + struct.pack("<I", code1)
    header += struct.pack("<QQQ24x4sI", text_offset, image_size, flags, b"ARM\x64", 64 * efi)
    header += pe
    return header + body


def pe_header(sections: list[tuple[str, int, bytes]], *, at: int, machine: int = 0xAA64) -> bytes:
    """Return the headers and section table of a PE file, which stand at offset *at*."""
    assert at
    header = struct.pack("<4sHH12xHxx", b"PE\0\0", machine, len(sections), 0)
    for name, offset, content in sections:
        header += struct.pack(
            "<8sIIII16x", name.encode(), len(content), 0, -(-len(content) // 16) * 16, offset
        )
    return header


def efi_program(
    sections: list[tuple[str, bytes]], *, machine: int = 0xAA64, start: bytes = b""
) -> bytes:
    """Return a PE file with *sections*, their sizes in the file rounded up as linkers do."""
    at = 64
    offset = at + 24 + 40 * len(sections)
    placed, contents = [], b""
    for name, content in sections:
        placed.append((name, offset + len(contents), content))
        contents += content + bytes(-len(content) % 16)
    start = (b"MZ" + start).ljust(60, b"\0") + struct.pack("<I", at)
    return start + pe_header(placed, at=at, machine=machine) + contents


def zboot(payload: bytes, packer: str, *, machine: int = 0xAA64) -> bytes:
    """Return an EFI zboot kernel: the payload is in a section, and found by the header."""
    start = bytes(2) + b"zimg" + struct.pack("<II8x", 128, len(payload)) + packer.encode()
    program = efi_program([(".data", payload)], machine=machine, start=start)
    assert program[128 : 128 + len(payload)] == payload
    return program


def uki(linux: bytes, **sections: bytes) -> bytes:
    """Return a UKI with *linux* and other *sections*, named without their dot."""
    others = [(f".{name}", content) for name, content in sections.items()]
    return efi_program([(".text", b"stub"), (".linux", linux), *others])


def elf(
    segments: list[tuple[int, bytes]], *, machine: int = 183, word: int = 2, order: int = 1
) -> bytes:
    """Return a 64-bit ELF executable with (physical address, content) *segments*."""
    offset = 64 + 56 * len(segments)
    table = contents = b""
    for physical, content in segments:
        at = offset + len(contents)
        size = len(content)
        table += struct.pack("<IIQQQQQQ", 1, 5, at, physical, physical, size, size + 99, 1 << 16)
        contents += content
    ident = struct.pack("<4sBBB9x", b"\x7fELF", word, order, 1)
    rest = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    return ident + rest + table + contents


def zstd(data: bytes) -> bytes:
    """Compress by Python's zstd module, or else by the command."""
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return bytes(import_module(module).compress(data))
        except ImportError:
            continue
    if not shutil.which("zstd"):
        pytest.skip("zstd is not installed")
    return subprocess.run(["zstd", "-q"], input=data, stdout=subprocess.PIPE, check=True).stdout


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
