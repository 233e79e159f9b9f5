"""Kernels are recognised by content; other files are refused with what they are."""

from __future__ import annotations

import bz2
import ctypes
import gzip
import lzma
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from vmm.arm64 import a64, compression, image
from vmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmm.arm64.image import Kernel

MIB = 1 << 20
LIMIT = 64 * MIB


def identify(data: bytes, limit: int = LIMIT) -> Kernel:
    return image.identify(memoryview(data), "guest.img", limit)


def refusal(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(UserError) as caught:
        identify(data, limit)
    line = str(caught.value)
    assert line.startswith("guest.img: ")
    assert caught.value.hint
    assert "\n" not in line
    return line.removeprefix("guest.img: ")


@pytest.mark.parametrize("efi", [False, True], ids=["plain", "EFI stub"])
def test_an_images_header_says_where_it_goes(efi: bool) -> None:  # noqa: FBT001
    data = arm64_image(text_offset=0x80000, image_size=5 * MIB, efi=efi)
    kernel = identify(data)
    assert (kernel.kind, kernel.layers) == ("Image", ("Image",))
    assert kernel.payload == data
    assert (kernel.text_offset, kernel.image_size, kernel.page_size) == (0x80000, 5 * MIB, 4096)
    assert kernel.initrd is None
    assert kernel.cmdline is None


@pytest.mark.parametrize(
    ("flags", "page_size"), [(0, None), (2, 4096), (4, 16384), (6, 65536), (0xE, 65536)]
)
def test_an_images_flags_tell_its_page_size(flags: int, page_size: int | None) -> None:
    assert identify(arm64_image(flags=flags)).page_size == page_size


def test_an_image_from_before_linux_3_17_goes_to_the_default_offset() -> None:
    kernel = identify(arm64_image(image_size=0, text_offset=123))
    assert kernel.text_offset == 0x80000
    assert kernel.image_size >= 2 * len(kernel.payload)


def test_an_image_takes_at_least_the_memory_it_is_loaded_into() -> None:
    data = arm64_image(image_size=64)
    assert identify(data).image_size == len(data)


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_compressed_image_is_the_image(kind: str) -> None:
    data = arm64_image()
    kernel = identify(COMPRESSIONS[kind](data))
    assert kernel.layers == (kind, "Image")
    assert str(kernel) == f"{kind} of Image"
    assert kernel.payload == data


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_padding_after_a_compressed_image_is_ignored(kind: str) -> None:
    assert identify(COMPRESSIONS[kind](arm64_image()) + bytes(9)).payload == arm64_image()


def test_compressed_streams_may_follow_each_other() -> None:
    data = arm64_image()
    assert identify(gzip.compress(data[:999]) + gzip.compress(data[999:])).payload == data


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_zboot_kernel_holds_a_compressed_image(kind: str) -> None:
    data = arm64_image()
    # All but gzip are followed by the uncompressed size.
    payload = COMPRESSIONS[kind](data) + bytes(4 * (kind != "gzip"))
    packer = {"gzip": "gzip", "xz": "xzkern", "zstd": "zstd22"}[kind]
    kernel = identify(zboot(payload, packer))
    assert kernel.layers == ("EFI zboot", kind, "Image")
    assert kernel.payload == data


def test_a_uki_brings_its_initrd_and_command_line() -> None:
    kernel = identify(
        uki(arm64_image(efi=True), cmdline=b"console=ttyAMA0 quiet\n\0", initrd=b"070701" * 7)
    )
    assert kernel.layers == ("UKI", "Image")
    assert kernel.payload == arm64_image(efi=True)  # and not the padding of its section
    assert kernel.cmdline == "console=ttyAMA0 quiet"
    assert bytes(kernel.initrd or b"") == b"070701" * 7


def test_a_uki_may_hold_a_zboot_kernel_and_nothing_else() -> None:
    kernel = identify(uki(zboot(gzip.compress(arm64_image()), "gzip")))
    assert kernel.layers == ("UKI", "EFI zboot", "gzip", "Image")
    assert kernel.initrd is None
    assert kernel.cmdline is None


def test_a_uki_of_many_profiles_boots_its_first() -> None:
    sections = [
        (".linux", arm64_image()),
        (".cmdline", b"common"),
        (".profile", b"ID=main"),
        (".cmdline", b"first"),
        (".profile", b"ID=factory-reset"),
        (".cmdline", b"second"),
    ]
    assert identify(efi_program(sections)).cmdline == "first"


def test_a_vmlinux_is_laid_out_by_its_segments() -> None:
    data = arm64_image()
    base = 0xFFFF_8000_8000_0000
    kernel = identify(elf([(base + 0x2000, b"data"), (base, data)]))
    assert kernel.layers == ("ELF", "Image")
    assert kernel.payload == data.ljust(0x2000, b"\0") + b"data"


@pytest.mark.parametrize(
    "code",
    [
        LOOP,
        NOP * 3 + LOOP,
        NOP * 100,
        bytes.fromhex("200080d2 c0035fd6"),  # mov x0, #1; ret
        bytes.fromhex("000080d2 1f2003d5 020000d4"),  # mov x0, #0; nop; hvc #0
        bytes.fromhex("03000014") + b"not code" + bytes.fromhex("00000014"),  # b over data
        bytes.fromhex("200080d2 e0ffffb5 c0035fd6"),  # mov; cbnz back; ret
    ],
)
def test_code_without_a_header_goes_to_the_default_offset(code: bytes) -> None:
    kernel = identify(code)
    assert (kernel.kind, kernel.layers) == ("flat", ("flat",))
    assert kernel.payload == code
    assert (kernel.text_offset, kernel.image_size) == (0x80000, len(code))


def test_compressed_code_without_a_header_is_found_too() -> None:
    assert identify(gzip.compress(NOP * 99 + LOOP)).layers == ("gzip", "flat")


@given(st.binary(max_size=200))
def test_random_bytes_are_no_code(data: bytes) -> None:
    # Each further word halves the odds; hypothesis likes zeros, which are no instruction either.
    assert not a64.plausible(memoryview(b"\0\0\0\0" + data))
    assert not a64.plausible(memoryview(data[:3]))


def test_random_files_are_no_code() -> None:
    accepted = sum(a64.plausible(memoryview(os.urandom(512))) for _ in range(2000))
    assert accepted == 0


X86 = bytearray(arm64_image(efi=True)[64:].rjust(2048, b"\0"))
X86[:2], X86[0x1FE:0x206] = b"MZ", b"\x55\xaa\0\0HdrS"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (bytes(X86), "an x86 Linux kernel (bzImage); build or download the arm64 kernel"),
        (efi_program([(".linux", b"x")], machine=0x8664), "an EFI program for x86-64; pyvmm boots"),
        (efi_program([], machine=0x1234), "an EFI program for an unknown machine (0x1234)"),
        (zboot(b"\x1f\x8b\x08", "gzip", machine=0x5064), "an EFI program for RISC-V"),
        (efi_program([(".text", b"shell")]), "an EFI program without a kernel in it"),
        (elf([], machine=62), "an ELF file for x86-64; pyvmm boots an arm64 Image"),
        (elf([], word=1, machine=40), "an ELF file for 32-bit Arm"),
        (elf([(0, NOP * 99)]), "an arm64 ELF file, but not a Linux kernel"),
        (arm64_image(flags=1), "a big-endian arm64 kernel; build it with CONFIG_CPU_LITTLE_ENDIAN"),
        (bytes(0x24) + b"\x18\x28\x6f\x01", "a 32-bit Arm Linux kernel (zImage)"),
        (b"MZ" + bytes(54) + b"RSC\x05" + bytes(4), "a RISC-V Linux kernel (Image)"),
        (b"MZ" + bytes(100), "a DOS program"),
        (bz2.compress(arm64_image()), "bzip2-compressed; unpack it first, or use gzip, xz or zstd"),
        (b"\x04\x22\x4d\x18" + bytes(99), "lz4-compressed; unpack it first"),
        (lzma.compress(arm64_image(), lzma.FORMAT_ALONE), "lzma-compressed"),
        (zboot(b"\x04\x22\x4d\x18", "lz4"), "EFI zboot of lz4 data; build it with gzip, xz or"),
        (zboot(b"\x04\x22\x4d\x18", "\x1b[2J\n"), r"EFI zboot of \x1b[2J\n data; build it"),
        (gzip.compress(b"#!/bin/sh\n"), "gzip of a text file; pyvmm boots an arm64 Image"),
        (gzip.compress(bytes(257) + b"ustar"), "gzip of a tar archive"),
        (b"070701" + bytes(99), "a cpio archive; give an initramfs with --initrd"),
        (b"QFI\xfb" + bytes(99), "a qcow2 disk image; a disk holds a kernel but is none"),
        (b"\xff" * 0x1FE + b"\x55\xaa", "a disk image with an MBR"),
        (b"\xff" * 0x438 + b"\x53\xef", "an ext4 file system"),
        ("#!/bin/sh\n# Grüße\necho hello\n".encode() * 100, "a text file; pyvmm boots"),
        (b"\x93\x27" + os.urandom(9), "neither a known format nor A64 code; pyvmm boots"),
        (bytes(5000), "nothing but zeros at its start; copy or download it again"),
        (bytes(1), "nothing but zeros"),
        (gzip.compress(b""), "gzip of nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # not bytes, some of them random
)
def test_what_is_no_arm64_kernel_is_named(data: bytes, what: str) -> None:
    assert refusal(data).startswith(what)


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_stream_is_called_so(kind: str, keep: float) -> None:
    packed = COMPRESSIONS[kind](arm64_image(body=os.urandom(100_000)))
    assert refusal(packed[: int(len(packed) * keep)]) == (
        f"truncated: the {kind} data ends early; copy or download it again"
    )


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_damaged_stream_is_called_so(kind: str) -> None:
    packed = bytearray(COMPRESSIONS[kind](arm64_image(body=os.urandom(100_000))))
    packed[5000:5008] = bytes(byte ^ 0xFF for byte in packed[5000:5008])
    assert refusal(bytes(packed)).startswith((f"damaged {kind} data: ", "damaged gzip data: "))


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_decompression_bomb_stops_at_the_guests_ram(kind: str) -> None:
    packed = COMPRESSIONS[kind](bytes(32 * MIB))
    assert refusal(packed, limit=4 * MIB).startswith(
        f"the {kind} data unpacks to more than the guest's 4 MiB of RAM; use more --memory"
    )


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_kernel_in_many_streams_is_found(kind: str) -> None:
    """Parallel compressors write a stream for each part."""
    data = arm64_image(body=os.urandom(1 << 20))
    pack, step = COMPRESSIONS[kind], len(data) // 40
    packed = b"".join(pack(data[at : at + step]) for at in range(0, len(data), step))
    found = identify(packed)
    assert found.layers == (kind, "Image")
    assert found.payload == data


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("beyond", [0, 1])
def test_streams_without_end_are_refused(kind: str, beyond: int) -> None:
    """Each empty stream has some ten bytes, and each costs a look."""
    many = compression.STREAMS - 1 + beyond
    packed = COMPRESSIONS[kind](b"") * many + COMPRESSIONS[kind](arm64_image())
    if beyond:
        assert refusal(packed).startswith(
            f"more than {compression.STREAMS} {kind} streams; unpack it first"
        )
    else:
        assert identify(packed).layers == (kind, "Image")


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_kernel_has_a_largest_size_however_much_ram_there_is(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MOST", 4 * MIB)
    packed = COMPRESSIONS[kind](bytes(32 * MIB))
    assert refusal(packed, limit=1 << 40).startswith(
        f"the {kind} data unpacks to more than 4 MiB; unpack it first"
    )


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_what_follows_a_stream_is_padding(kind: str) -> None:
    packed = COMPRESSIONS[kind](arm64_image()) + bytes(1 << 20)
    assert identify(packed).payload == arm64_image()


def test_overlapping_segments_are_no_kernel() -> None:
    """65,535 segments, each of the whole file, would be copied one over the other."""
    data = arm64_image()
    overlapping = elf([(0, data), (len(data) - 1, b"x")])
    assert refusal(overlapping).startswith("an arm64 ELF file whose segments overlap; ")
    again = elf([(0, data), (0, data), (len(data), b"x")])
    assert refusal(again).startswith("an arm64 ELF file whose segments overlap; ")
    adjacent = identify(elf([(len(data), b"xyz"), (0, data)]))
    assert adjacent.payload == data + b"xyz"


def test_an_elf_file_has_a_largest_extent_however_much_ram_there_is() -> None:
    spread = elf([(0, arm64_image()), (compression.MOST, b"data")])
    assert refusal(spread, limit=1 << 40).startswith("an arm64 ELF file, but not a Linux kernel")


def test_a_stack_of_compressions_comes_to_an_end() -> None:
    data = arm64_image()
    for _ in range(9):
        data = gzip.compress(data)
    assert refusal(data).startswith("gzip of gzip of gzip of gzip of gzip of ...")


def test_a_vmlinux_far_apart_is_not_laid_out() -> None:
    spread = elf([(0, arm64_image()), (1 << 40, b"data")])
    assert refusal(spread).startswith("an arm64 ELF file, but not a Linux kernel that fits")


TRUNCATED = "truncated: its headers promise more than there is; copy or download it again"


@pytest.mark.parametrize(
    "data",
    [
        arm64_image(efi=True)[:-100],
        arm64_image(efi=True)[:70],
        arm64_image()[:61],
        uki(arm64_image(), initrd=b"070701" * 99)[:-32],
        uki(arm64_image())[:100],
        zboot(gzip.compress(arm64_image(), mtime=0), "gzip")[:-32],
        elf([(0, arm64_image())])[:-1],
        elf([(0, arm64_image())])[:80],
        elf([])[:30],
        b"MZ\x40\xfa",
    ],
)
def test_a_file_shorter_than_its_headers_say_is_truncated(data: bytes) -> None:
    assert refusal(data) == TRUNCATED


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_read_or_refused(at: int, damage: bytes) -> None:
    data = bytearray(uki(zboot(gzip.compress(arm64_image()), "gzip"), cmdline=b"quiet"))
    data[at : at + len(damage)] = damage
    try:
        kernel = identify(bytes(data))
    except UserError:
        return
    assert kernel.payload


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_a_damaged_elf_header_is_read_or_refused(at: int, damage: bytes) -> None:
    data = bytearray(elf([(0, arm64_image()), (1 << 20, b"data")]))
    data[at : at + len(damage)] = damage
    try:
        kernel = identify(bytes(data))
    except UserError:
        return
    assert kernel.payload


def test_a_file_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(arm64_image())
    kernel = image.load(path, LIMIT)
    assert type(kernel.payload.obj).__name__ == "mmap"
    assert kernel.payload == arm64_image()
    assert kernel.name == str(path)


def empty(path: Path) -> str:
    path.touch()
    return "the file is empty; copy or download it again"


def missing(_path: Path) -> str:
    return "No such file or directory; check the path and its permissions"


def directory(path: Path) -> str:
    path.mkdir()
    return "a directory; give a file"


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return "not a regular file; give a file"


@pytest.mark.parametrize("make", [empty, missing, directory, fifo])
def test_what_can_not_be_read_is_named(tmp_path: Path, make: Callable[[Path], str]) -> None:
    path = tmp_path / "guest.img"
    complaint = make(path)
    with pytest.raises(UserError) as caught:
        image.load(path, LIMIT)
    assert str(caught.value) == f"{path}: {complaint}"


@pytest.fixture
def no_zstd_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)


@pytest.mark.usefixtures("no_zstd_module")
def test_without_any_zstd_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    packed = COMPRESSIONS["zstd"](arm64_image())
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert refusal(packed) == (
        "this Python has no zstd; install Debian's libzstd1 package, "
        "or pip install 'pyvmm-arm64[zstd]'"
    )


@pytest.mark.usefixtures("no_zstd_module")
def test_the_systems_libzstd_serves_without_the_module() -> None:
    data = arm64_image(body=os.urandom(100_000))
    packed = COMPRESSIONS["zstd"](data)
    assert identify(packed).payload == data
    assert identify(packed + bytes(9)).payload == data
    assert identify(packed + COMPRESSIONS["zstd"](b"more")).payload == data + b"more"
    assert "more than the guest's 0 MiB" in refusal(packed, limit=4096)
    assert refusal(packed[:9000]).startswith("truncated: ")
    assert refusal(packed[:9000] + b"\xff" * 8 + packed[9008:]).startswith("damaged zstd data: ")


@pytest.mark.skipif(
    not shutil.which("aarch64-linux-gnu-gcc"), reason="gcc-aarch64-linux-gnu is not installed"
)
def test_what_a_compiler_makes_for_bare_metal_is_code(tmp_path: Path) -> None:
    source = tmp_path / "hello.c"
    source.write_text(
        'void _start(void) { for (const char *s = "hi"; *s; s++)'
        " *(volatile char *)0x9000000 = *s; for (;;) ; }\n"
    )
    program, flat = tmp_path / "hello", tmp_path / "hello.bin"
    gcc = ["aarch64-linux-gnu-gcc", "-O1", "-nostdlib", "-static", "-ffreestanding"]
    subprocess.run([*gcc, "-o", str(program), str(source)], check=True)
    objcopy = [
        "aarch64-linux-gnu-objcopy",
        "-O",
        "binary",
        "-R",
        ".note.*",
        str(program),
        str(flat),
    ]
    subprocess.run(objcopy, check=True)
    assert image.load(flat, LIMIT).kind == "flat"
    with pytest.raises(UserError, match="objcopy -O binary makes a flat binary of it"):
        image.load(program, LIMIT)


def test_a_huge_file_is_looked_at_not_read(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"QFI\xfb")
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="a qcow2 disk image"):
        image.load(path, LIMIT)
